import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  describeLegal,
  isLegal,
  latentShape,
  legalSizes,
  nearestLegal,
  strideOf,
  tokensOf,
} from '../../../src/models/latent.ts';
import type { Extent } from '../../../src/models/network.ts';
import { type NetworkName, networkNames, type SizedNetwork, sizedNetwork } from '../../../src/models/registry.ts';

function network(name: NetworkName, patchSize?: Extent): SizedNetwork {
  const sized = sizedNetwork(name, { patchSize });
  if ('problems' in sized) throw new Error(sized.problems[0]?.text);
  return sized.network;
}

const part = fc.integer({ min: 1, max: 4 });
const anyNetwork = fc
  .record({ name: fc.constantFrom(...networkNames), patch: fc.tuple(part, part, part), onPixels: fc.boolean() })
  .map(({ name, patch: [frames, rows, columns], onPixels }) => {
    const made = network(name, name.startsWith('cosmos') ? [1, rows, columns] : [frames, rows, columns]);
    return { network: made, stride: strideOf(made, onPixels) };
  });
const anyAxis = fc.constantFrom<'frames' | 'height' | 'width'>('frames', 'height', 'width');

describe('legal sizes', () => {
  it('are those whose latents are whole patches within the last position', () => {
    fc.assert(
      fc.property(anyNetwork, anyAxis, fc.integer({ min: 1, max: 5000 }), ({ network, stride }, axis, value) => {
        const index = { frames: 0, height: 1, width: 2 }[axis] as 0 | 1 | 2;
        const latents = axis === 'frames' ? 1 + (value - 1) / stride[0] : value / stride[index];
        const patch = network.sizes.patchSize[index];
        const limit = network.family.maxLatent(network.sizes)[index];
        const fits = Number.isInteger(latents) && latents % patch === 0 && latents <= limit;
        expect(isLegal(value, legalSizes(network, stride)[axis])).toBe(fits);
      }),
      { numRuns: 2000 },
    );
  });

  it('that are offered are legal and the nearest', () => {
    fc.assert(
      fc.property(anyNetwork, anyAxis, fc.integer({ min: 1, max: 40_000 }), ({ network, stride }, axis, value) => {
        const legal = legalSizes(network, stride)[axis];
        fc.pre(!isLegal(value, legal));
        const offered = nearestLegal(value, legal);
        expect(offered.length).toBeGreaterThan(0);
        for (const other of offered) expect(isLegal(other, legal)).toBe(true);
        const [low, high] = [Math.min(...offered), Math.max(...offered)];
        // Nothing legal lies between the value and what is offered, on either side that has legal values.
        for (let other = low + 1; other < high; other++) expect(isLegal(other, legal)).toBe(false);
        if (low > value) expect(low).toBe(legal.first);
        else if (high < value) expect(high).toBe(legal.last);
        else expect([low < value, high > value]).toEqual([true, true]);
      }),
      { numRuns: 2000 },
    );
  });

  it('are described', () => {
    const onLatents = legalSizes(network('wan2.1-t2v-1.3b'), [4, 8, 8]);
    expect(describeLegal(onLatents.frames)).toBe('4n+1');
    expect(describeLegal(onLatents.height)).toBe('a multiple of 16');
    expect(nearestLegal(80, onLatents.frames)).toEqual([77, 81]);
    expect(nearestLegal(470, onLatents.height)).toEqual([464, 480]);
    expect(nearestLegal(1, onLatents.height)).toEqual([16]);
    expect(describeLegal(legalSizes(network('wan2.1-tiny', [2, 2, 2]), [4, 8, 8]).frames)).toBe('8n+5');
    expect(nearestLegal(1930, legalSizes(network('cosmos-predict2-t2i-2b'), [4, 8, 8]).width)).toEqual([1920]);
  });
});

describe('latents and tokens (wan2.1.md section 8, cosmos-predict2.md section 9)', () => {
  it.each([
    ['wan2.1-t2v-1.3b', 81, 480, 832, [16, 21, 60, 104], 32_760],
    ['wan2.1-t2v-1.3b', 77, 480, 832, [16, 20, 60, 104], 31_200],
    ['wan2.1-t2v-14b', 81, 640, 640, [16, 21, 80, 80], 33_600],
    ['wan2.1-t2v-14b', 81, 480, 640, [16, 21, 60, 80], 25_200],
    ['wan2.1-t2v-14b', 81, 720, 1280, [16, 21, 90, 160], 75_600],
    ['wan2.1-t2v-14b', 81, 720, 960, [16, 21, 90, 120], 56_700],
    ['cosmos-predict2-t2i-2b', 1, 1024, 1024, [16, 1, 128, 128], 4096],
    ['cosmos-predict2-t2i-14b', 1, 880, 1168, [16, 1, 110, 146], 4015],
    ['cosmos-predict2-t2i-0.6b', 1, 768, 1360, [16, 1, 96, 170], 4080],
  ] as const)('%s, %i x %i x %i', (name, frames, height, width, latent, tokens) => {
    const sized = network(name);
    const shape = latentShape(sized, strideOf(sized, false), { frames, height, width });
    expect(shape).toEqual(latent);
    expect(tokensOf(sized, shape)).toBe(tokens);
  });
});
