import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import fc from 'fast-check';
import { beforeAll, describe, expect, it } from 'vitest';
import { narrowest, type ParameterCounts } from '../../src/models/network.ts';
import {
  type NetworkName,
  networkNamed,
  networkNames,
  type Overrides,
  sizedNetwork,
} from '../../src/models/registry.ts';
import { packageRoot } from '../../src/package-root.ts';
import { testPython } from '../python.ts';

interface Case {
  readonly name: NetworkName;
  readonly overrides: Overrides;
}

interface Facts {
  readonly sizes: Readonly<Record<string, unknown>>;
  readonly spec: Readonly<Record<string, unknown>>;
  readonly parameters: ParameterCounts;
  readonly narrowest: Readonly<Record<string, number>>;
  /** (from, to) of every layer that can have adapters, sorted. */
  readonly layers: readonly (readonly number[])[];
  readonly places: Readonly<Record<string, readonly string[]>>;
}

const small = fc.integer({ min: 1, max: 9 });
const sizes = {
  dim: fc.constantFrom(2, 6, 8, 10, 12, 24, 30, 128),
  numHeads: fc.integer({ min: 1, max: 4 }),
  ffnDim: small,
  textDim: small,
  textLen: small,
  freqDim: small,
  mlpRatio: fc.constantFrom(0.05, 0.25, 0.75, 1, 2.5, 4),
  adalnLoraDim: small,
  inDim: small,
  outDim: small,
  patchSize: fc.tuple(fc.constantFrom(1, 1, 1, 2), fc.integer({ min: 1, max: 3 }), fc.integer({ min: 1, max: 3 })),
  ropeRatios: fc.constant([1, 2, 3]),
  eps: fc.constant(1e-5),
};

/** Overrides as a config may give them; one case in four has some that belong to the other family, or are null. */
const anyCase: fc.Arbitrary<Case> = fc
  .record({
    name: fc.constantFrom(...networkNames),
    given: fc.record(sizes, { requiredKeys: [] }),
    numLayers: fc.integer({ min: 1, max: 2 }),
    foreign: fc.constantFrom<'drop' | 'keep' | 'null'>('drop', 'drop', 'keep', 'null'),
  })
  .map(({ name, given, numLayers, foreign }) => {
    const own = Object.keys(networkNamed(name).sizes);
    const overrides = Object.entries(given)
      .filter(([key]) => own.includes(key) || foreign !== 'drop')
      .map(([key, value]) => [key, foreign === 'null' && !own.includes(key) ? null : value]);
    return { name, overrides: { ...Object.fromEntries(overrides), numLayers } };
  });

const cases = fc.sample(anyCase, { numRuns: 400, seed: 4 });
let python: { readonly facts: Readonly<Record<string, Facts>>; readonly verdicts: readonly (string | number)[] };

beforeAll(() => {
  const child = spawnSync(testPython(), [join(import.meta.dirname, 'networks.py')], {
    input: JSON.stringify(cases),
    encoding: 'utf8',
    maxBuffer: 1 << 26,
    env: { ...process.env, PYTHONPATH: join(packageRoot(), 'py'), PYTHONDONTWRITEBYTECODE: '1' },
  });
  if (child.status !== 0) throw new Error(child.stderr);
  python = JSON.parse(child.stdout) as typeof python;
});

const camel = (name: string): string => name.replace(/_(.)/g, (_all, letter: string) => letter.toUpperCase());

describe('the networks TypeScript knows', () => {
  it('are those of Python', () => {
    expect([...networkNames].sort()).toEqual(Object.keys(python.facts).sort());
  });

  it.each(networkNames)('%s has the sizes and limits of Python', name => {
    const { family, release, sizes: own } = networkNamed(name);
    const { sizes: theirs, spec, parameters, narrowest: narrow, layers, places } = python.facts[name] as Facts;
    expect(own).toEqual(Object.fromEntries(Object.entries(theirs).map(([key, value]) => [camel(key), value])));
    expect({
      family: family.name,
      vae_stride: family.vaeStride,
      pixel_sizes: release?.pixelSizes ?? [],
      max_latent: family.maxLatent(own),
    }).toEqual({
      family: spec.family,
      vae_stride: spec.vae_stride,
      pixel_sizes: spec.pixel_sizes,
      max_latent: spec.max_latent,
    });
    expect(family.encoderFiles).toEqual(places);
    expect(family.parameters(own)).toEqual(parameters);
    const linears = family.linears(own);
    expect({ attention: narrowest(linears, 'attention'), ffn: narrowest(linears, 'ffn') }).toEqual(narrow);
    const sides = linears.map(({ from, to }) => [from, to]).sort(([a = 0, b = 0], [c = 0, d = 0]) => a - c || b - d);
    expect(sides).toEqual(layers);
  });

  it('have sizes judged as Python does, and as many parameters', () => {
    const ours = cases.map(({ name, overrides }) => {
      const sized = sizedNetwork(name, overrides);
      return 'problems' in sized ? sized.code : sized.network.parameters;
    });
    expect(ours).toEqual(python.verdicts);
    for (const code of ['E_NETWORK_SIZE', 'E_NETWORK_OVERRIDE'])
      expect(ours.filter(verdict => verdict === code).length).toBeGreaterThan(20);
    expect(ours.filter(verdict => typeof verdict === 'number').length).toBeGreaterThan(100);
  });
});
