import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { listPresets, loadConfig } from '../../../src/config/load.ts';
import { networkNamed } from '../../../src/models/registry.ts';
import { type Host, type Need, needsOf } from '../../../src/runs/needs.ts';

type Python = Host['python'];

const none: Python = { media: { names: [], hint: 'Add them.' } };
const all = {
  selected: { executable: '/py' },
  media: { names: [], found: { executable: '/py' } },
} as unknown as Python;
const large = { python: all, gpus: Array<string>(8).fill('NVIDIA H200'), freeBytes: 1e15 };

let folder = '';
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'rcm-needs-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

const env = () => ({ HF_HOME: join(folder, 'hub') });

async function needs(preset: string, host: Omit<Host, 'env'>, set: readonly string[] = []): Promise<readonly Need[]> {
  const { config } = await loadConfig(preset, { cwd: folder, env: {}, set });
  return needsOf(config, { ...host, env: env() });
}

const missing = (all: readonly Need[]): readonly string[] =>
  all.filter(need => need.found === null).map(({ what }) => what);

const put = (...parts: readonly string[]): void => {
  const path = join(folder, ...parts);
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, 'x');
};

const paper = listPresets().filter(name => name !== 'digits-rcm');

describe.each(paper)('%s', preset => {
  it('on an empty machine lacks everything, and says how to get each', async () => {
    const lacking = await needs(preset, { python: none, gpus: [], freeBytes: 1e9 });
    const encoders = 'text encoder, tokenizer, VAE';
    expect(missing(lacking)).toEqual([
      'Python environment',
      'media packages',
      'GPUs',
      'teacher.weights',
      encoders,
      'data',
      'disk',
    ]);
    const hints = Object.fromEntries(lacking.map(({ what, hint }) => [what, hint]));
    const { config } = await loadConfig(preset, { cwd: folder, env: {} });
    const repository = networkNamed(config.model.name).release?.repository;
    expect(hints['Python environment']).toContain('rcm-bridge env setup');
    expect(hints.GPUs).toContain('8');
    expect(hints['teacher.weights']).toContain(`rcm-bridge weights fetch hf:${repository}`);
    expect(hints['teacher.weights']).toContain(`Then: --set model.path=hf:${repository}`);
    expect(hints[encoders]).toContain(`rcm-bridge weights fetch hf:${repository} --with-encoders`);
    expect(hints.data).toMatch(/has no shards\. Make them: rcm-bridge data build .* --prompts FILE; or set data\.path/);
    expect(hints.disk).toMatch(/^1\.0 GB free.*--runs-dir/);
  });

  it('with all of it there lacks nothing', async () => {
    const { config } = await loadConfig(preset, { cwd: folder, env: {} });
    const { encoderFiles } = networkNamed(config.model.name).family;
    for (const [, places] of Object.entries(encoderFiles)) put('model', places.at(-1) as string);
    put(relative(folder, config.data.path as string), '000.tar');
    const set = [`model.path=${join(folder, 'model')}`];
    expect(missing(await needs(preset, large, set))).toEqual([]);
  });
});

it('names the part of a model that is not there', async () => {
  put('model', 'Wan2.1_VAE.pth');
  const lacking = await needs('wan2.1-t2v-1.3b-480p-rcm', large, [`model.path=${join(folder, 'model')}`]);
  expect(missing(lacking)).toEqual(['text encoder, tokenizer', 'data']);
});

it('names a set that is not complete, although it has shards', async () => {
  put('data', 'shard_000000.tar');
  const data = async () => (await needs('wan2.1-t2v-1.3b-480p-rcm', large, ['data.path=data'])).at(-2);
  expect(await data()).toMatchObject({ what: 'data', found: expect.stringContaining('1 shards') });
  put('data', '.parts', '000000001.part');
  expect(await data()).toMatchObject({
    what: 'data',
    found: null,
    hint: expect.stringMatching(/not complete\. Go on:/),
  });
});

it('asks for nothing that the digits do not read', async () => {
  const lacking = await needs('digits-rcm', { ...large, gpus: [], python: { ...all, media: none.media } });
  expect(missing(lacking)).toEqual([]);
  expect(lacking.map(({ what }) => what)).toEqual(['Python environment', 'teacher.weights', 'disk']);
});
