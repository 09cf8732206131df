import { describe, expect, it } from 'vitest';
import { loadConfig } from '../../../src/config/load.ts';
import { howToFetch, locateWeights, namedWeights } from '../../../src/runs/weights.ts';

const named = async (preset: string, set: Readonly<Record<string, unknown>> = {}) =>
  namedWeights((await loadConfig(preset, { cwd: '/models', env: {}, set })).config);

describe('the weights of a config', () => {
  it('are those of the roles that name their own', async () => {
    expect(await named('digits-rcm')).toEqual([
      { key: 'teacher.weights', locator: 'builtin:digits-teacher', adapter: false },
    ]);
    expect(await named('wan2.1-t2v-1.3b-480p-rcm')).toEqual([
      { key: 'teacher.weights', locator: '/models/weights/Wan2.1-T2V-1.3B', adapter: false },
    ]);
  });

  it('are not those of a critic that the method does not have', async () => {
    const init = { 'student.init': 'a', 'critic.init': 'b' };
    const locators = async (method: string) =>
      (await named('digits-rcm', { ...init, method })).map(({ locator }) => locator);
    expect(await locators('dmd')).toEqual(['builtin:digits-teacher', '/models/a', '/models/b']);
    expect(await locators('scm')).toEqual(['builtin:digits-teacher', '/models/a']);
  });

  it('are adapters where student and critic share the network of the teacher', async () => {
    const lora = { rank: 4, alpha: 8, targets: ['attention'] };
    const weights = await named('digits-rcm', { 'student.lora': lora, 'student.init': 'a.safetensors' });
    expect(weights.map(({ adapter }) => adapter)).toEqual([false, true]);
  });
});

describe('weights that are not here', () => {
  it.each([
    ['wan2.1-t2v-14b', /hf:Wan-AI\/Wan2\.1-T2V-14B \(.*index\.json\) or hf:Wan-AI\/Wan2\.1-T2V-14B-Diffusers/],
    ['cosmos-predict2-t2i-2b', /hf:nvidia\/Cosmos-Predict2-2B-Text2Image \(model\.pt, or transformer\//],
  ] as const)('of %s come by a command', (network, hint) => {
    expect(() => locateWeights('/nowhere', network)).toThrow(/no weights at \/nowhere/);
    expect(howToFetch('/nowhere', network)).toMatch(hint);
  });

  it('come by their own locator, or nobody publishes them', () => {
    expect(howToFetch('hf:a/b@c', 'wan2.1-t2v-14b')).toBe('Fetch them: rcm-bridge weights fetch hf:a/b@c');
    expect(howToFetch('/nowhere', 'wan2.1-tiny')).toBeUndefined();
    expect(howToFetch('/nowhere')).toBeUndefined();
  });
});
