import { tmpdir } from 'node:os';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { loadConfig } from '../../../src/config/load.ts';
import { sampleFacts, sizeWarnings } from '../../../src/config/sizes.ts';
import { isRcmBridgeError } from '../../../src/errors/index.ts';

const wan = 'wan2.1-t2v-1.3b-480p-rcm';
const load = async (preset: string, set: Readonly<Record<string, unknown>> = {}) =>
  (await loadConfig(preset, { cwd: tmpdir(), env: {}, set })).config;

async function refusal(preset: string, set: Readonly<Record<string, unknown>>) {
  const error = await load(preset, set).then(
    () => new Error('it was accepted'),
    (reason: unknown) => reason,
  );
  if (!isRcmBridgeError(error)) throw error;
  return { code: error.code, exitCode: error.exitCode, message: error.message, hint: error.hint ?? '' };
}

/** The Wan preset as a Cosmos config. */
const cosmos = (size: string, set: Readonly<Record<string, unknown>> = {}) => ({
  'model.name': `cosmos-predict2-t2i-${size}`,
  'model.frames': 1,
  'model.height': 768,
  'model.width': 1360,
  ...set,
});

describe('sizes of a config', () => {
  it.each([
    [wan, {}, { network: 'wan2.1-t2v-1.3b', parameters: 1_418_996_800, latent: [16, 20, 60, 104], tokens: 31_200 }],
    [wan, cosmos('2b'), { parameters: 1_956_405_248, latent: [16, 1, 96, 170], tokens: 4080 }],
    ['digits-rcm', {}, { network: 'wan2.1-tiny', latent: [1, 1, 8, 8], tokens: 16 }],
  ])('%s %o', async (preset, set, facts) => {
    expect(sampleFacts(await load(preset, set))).toMatchObject(facts);
  });

  it('may be those of the embedded default with the other family', async () => {
    const set = {
      'model.name': 'cosmos-predict2-tiny',
      'model.overrides.ffnDim': null,
      'model.overrides.freqDim': null,
    };
    expect(sampleFacts(await load('digits-rcm', set))).toMatchObject({ latent: [1, 1, 8, 8], tokens: 16 });
  });

  it.each([
    ['frames', wan, { 'model.frames': 80 }, 'E_CONFIG_VALUE', /model\.frames is 80.*4n\+1/, 'Use 77 or 81.'],
    ['height', wan, { 'model.height': 470 }, 'E_CONFIG_VALUE', /height is 470.*multiple of 16/, 'Use 464 or 480.'],
    ['half a patch', wan, { 'model.width': 840 }, 'E_CONFIG_VALUE', /multiple of 16/, 'Use 832 or 848.'],
    ['the last position of Cosmos', wan, cosmos('14b', { 'model.width': 1936 }), 'E_CONFIG_VALUE', /1920/, 'Use 1920.'],
    ['the last position of Wan', wan, { 'model.frames': 4097 }, 'E_CONFIG_VALUE', /4093/, 'Use 4093.'],
    [
      'a Wan setting in Cosmos',
      wan,
      cosmos('2b', { 'model.overrides': { ffnDim: 1 } }),
      'E_NETWORK_OVERRIDE',
      /ffnDim is no setting/,
      /mlpRatio/,
    ],
    [
      'a setting of no network',
      wan,
      { 'model.overrides': { ffnDims: 1 } },
      'E_CONFIG_UNKNOWN_KEY',
      /ffnDims/,
      /ffnDim/,
    ],
    [
      'heads',
      wan,
      { 'model.overrides.numHeads': 11 },
      'E_NETWORK_SIZE',
      /overrides\.dim is 1536.*11 heads/,
      'Use dim 1518 or 1540, or numHeads 8 or 12.',
    ],
    [
      'channels of latents',
      wan,
      { 'model.overrides': { inDim: 4, outDim: 4 } },
      'E_CONFIG_VALUE',
      /inDim is 4.*16 channels/,
      /16/,
    ],
    ['another velocity', wan, { 'model.overrides.outDim': 8 }, 'E_CONFIG_VALUE', /outDim is 8/, 'Use 16.'],
    [
      'text of another width',
      wan,
      { 'model.overrides.textDim': 1024 },
      'E_CONFIG_VALUE',
      /textDim is 1024.*umt5-xxl/,
      /4096/,
    ],
    ['the encoder of another family', wan, { 'model.textEncoder': 't5-11b' }, 'E_CONFIG_VALUE', /umt5-xxl/, /umt5-xxl/],
    [
      'channels of digits',
      'digits-rcm',
      { 'model.overrides': { inDim: null, outDim: null } },
      'E_CONFIG_VALUE',
      /inDim is 16.*1 channel/,
      /to 1/,
    ],
    ['size of digits', 'digits-rcm', { 'model.height': 16 }, 'E_CONFIG_VALUE', /height is 16.*have 8/, 'Use 8.'],
    [
      'patches of digits',
      'digits-rcm',
      { 'model.overrides.patchSize': [1, 3, 3] },
      'E_CONFIG_VALUE',
      /patchSize is 1 x 3 x 3/,
      /./,
    ],
    [
      'a rank wider than a layer',
      'digits-rcm',
      { 'student.lora': { rank: 65, alpha: 1, targets: ['ffn'] } },
      'E_CONFIG_VALUE',
      /rank is 65/,
      'Use at most 64.',
    ],
    [
      'model without a folder',
      wan,
      { 'model.path': null },
      'E_CONFIG_VALUE',
      /teacher\.weights is model/,
      /model\.path/,
    ],
    [
      'an unknown network',
      wan,
      { 'model.name': 'wan2.1-1.3b' },
      'E_CONFIG_VALUE',
      /model\.name/,
      'Did you mean wan2.1-t2v-1.3b?',
    ],
  ])('refuse %s', async (_what, preset, set, code, message, hint) => {
    const error = await refusal(preset, set);
    expect(error).toMatchObject({ code, exitCode: 2 });
    expect(error.message).toMatch(message);
    if (typeof hint === 'string') expect(error.hint).toBe(hint);
    else expect(error.hint).toMatch(hint);
  });

  it('that an error offers are accepted', async () => {
    const bad = fc.record({
      key: fc.constantFrom('model.frames', 'model.height', 'model.width'),
      value: fc.integer({ min: 2, max: 3000 }),
      base: fc.constantFrom({}, cosmos('2b')),
    });
    await fc.assert(
      fc.asyncProperty(bad, async ({ key, value, base }) => {
        const error = await refusal(wan, { ...base, [key]: value }).catch(() => undefined);
        fc.pre(error !== undefined);
        const offered = error?.hint.match(/\d+/g)?.map(Number) ?? [];
        expect(offered.length).toBeGreaterThan(0);
        for (const other of offered) await load(wan, { ...base, [key]: other });
      }),
      { numRuns: 30 },
    );
  });
});

describe('warnings', () => {
  it('name the sizes the published weights were made for', async () => {
    expect(sizeWarnings(await load(wan))).toEqual([]);
    expect(sizeWarnings(await load(wan, cosmos('2b')))).toEqual([]);
    expect(sizeWarnings(await load('digits-rcm'))).toEqual([]);
    expect(sizeWarnings(await load(wan, { 'model.height': 720, 'model.width': 1280 }))).toEqual([
      expect.stringMatching(/wan2\.1-t2v-1\.3b were made for 480 x 832, .*not 720 x 1280\.$/),
    ]);
    const large = { 'model.name': 'wan2.1-t2v-14b', 'model.height': 720, 'model.width': 1280 };
    expect(sizeWarnings(await load(wan, large))).toEqual([]);
    expect(sizeWarnings(await load(wan, cosmos('2b', { 'model.frames': 5 })))).toEqual([
      expect.stringMatching(/made for images/),
    ]);
  });
});
