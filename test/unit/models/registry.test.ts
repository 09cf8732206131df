import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { totalParameters } from '../../../src/models/network.ts';
import { networkNamed, sizedNetwork, suggestNetwork } from '../../../src/models/registry.ts';

describe('parameters', () => {
  it.each([
    ['wan2.1-t2v-1.3b', 1_418_996_800],
    ['wan2.1-t2v-14b', 14_288_491_584],
    ['cosmos-predict2-t2i-0.6b', 597_536_000],
    ['cosmos-predict2-t2i-2b', 1_956_405_248],
    ['cosmos-predict2-t2i-14b', 14_265_265_152],
  ] as const)('%s has %i', (name, parameters) => {
    const { family, sizes } = networkNamed(name);
    expect(totalParameters(family, sizes)).toBe(parameters);
  });
});

describe('a mistyped network', () => {
  it.each([
    ['wan2.1-tinny', 'wan2.1-tiny'],
    ['Wan2.1-T2V-14B', 'wan2.1-t2v-14b'],
    ['wan2.1-1.3b', 'wan2.1-t2v-1.3b'],
    ['wan-14b', 'wan2.1-t2v-14b'],
    ['Wan-AI/Wan2.1-T2V-1.3B', 'wan2.1-t2v-1.3b'],
    ['nvidia/Cosmos-Predict2-2B-Text2Image', 'cosmos-predict2-t2i-2b'],
    ['cosmos-2b', 'cosmos-predict2-t2i-2b'],
    ['cosmos', undefined],
    ['flux', undefined],
    ['--', undefined],
  ])('%s suggests %s', (name, suggestion) => {
    expect(suggestNetwork(name)).toBe(suggestion);
  });
});

describe('overrides', () => {
  const problem = (...[name, overrides]: Parameters<typeof sizedNetwork>) => {
    const sized = sizedNetwork(name, overrides);
    return 'problems' in sized ? { code: sized.code, ...sized.problems[0] } : sized.network;
  };

  it('change the sizes; null removes one', () => {
    expect(problem('wan2.1-tiny', { dim: 64, ffnDim: null })).toMatchObject({ sizes: { dim: 64, ffnDim: 512 } });
    expect(problem('cosmos-predict2-tiny', { ffnDim: null, freqDim: null })).toMatchObject({ sizes: { dim: 128 } });
  });

  it('that the network does not have are refused', () => {
    expect(problem('cosmos-predict2-tiny', { ffnDim: 192 })).toMatchObject({
      code: 'E_NETWORK_OVERRIDE',
      key: 'ffnDim',
      hint: expect.stringMatching(/null where it is inherited.*mlpRatio/),
    });
    expect(problem('wan2.1-tiny', { adalnLoraDim: 8 })).toMatchObject({ code: 'E_NETWORK_OVERRIDE' });
  });

  it.each([
    [{ dim: 250 }, 'dim', 'Use dim 248 or 252, or numHeads 1 or 5.'],
    [{ dim: 6, numHeads: 6 }, 'dim', 'Use dim 12, or numHeads 3.'],
    [{ freqDim: 7 }, 'freqDim', 'Use 6 or 8.'],
    [{ freqDim: 1 }, 'freqDim', 'Use 2.'],
  ])('%o is no size', (overrides, key, hint) => {
    expect(problem('wan2.1-tiny', overrides)).toMatchObject({ code: 'E_NETWORK_SIZE', key, hint });
  });

  it('that an error offers are legal', () => {
    const small = fc.integer({ min: 1, max: 200 });
    fc.assert(
      fc.property(small, small, (dim, numHeads) => {
        const found = problem('wan2.1-tiny', { dim, numHeads });
        fc.pre('hint' in found);
        const offered = [...('hint' in found ? found.hint : '').matchAll(/(dim|numHeads) ([\d or]+)/g)];
        expect(offered.length).toBeGreaterThan(0);
        for (const [, key, values] of offered)
          for (const value of values?.match(/\d+/g) ?? [])
            expect(problem('wan2.1-tiny', { dim, numHeads, [key as string]: Number(value) })).not.toHaveProperty(
              'code',
            );
      }),
    );
  });

  it('keep a Cosmos patch in one frame', () => {
    expect(problem('cosmos-predict2-tiny', { patchSize: [2, 2, 2] })).toMatchObject({
      code: 'E_NETWORK_SIZE',
      key: 'patchSize',
      hint: 'Use [1, 2, 2].',
    });
  });
});
