import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import { loadConfig } from '../../../src/config/load.ts';
import { listPresets } from '../../../src/config/presets.ts';
import { packageRoot } from '../../../src/package-root.ts';
import { leaves } from '../../leaves.ts';

type Values = Readonly<Record<string, unknown>>;

const methods = ['rcm', 'scm', 'dmd', 'dcm'];
const sizes = [
  'wan2.1-t2v-1.3b-480p',
  'wan2.1-t2v-14b-480p',
  'cosmos-predict2-t2i-0.6b',
  'cosmos-predict2-t2i-2b',
  'cosmos-predict2-t2i-14b',
];
const names = sizes.flatMap(size => methods.map(method => `${size}-${method}`));

const fileOf = (preset: string): Values =>
  parse(readFileSync(join(packageRoot(), 'configs', `${preset}.yaml`), 'utf8')) as Values;

/** The resolved values by key path; paths relative to the package, as they are written. */
async function valuesOf(preset: string): Promise<ReadonlyMap<string, unknown>> {
  const { config } = await loadConfig(preset, { cwd: '/', env: {} });
  return new Map([...leaves(config)].map(([path, value]) => [path, relative(value)]));
}

const relative = (value: unknown): unknown => (typeof value === 'string' ? value.replace(/^\//, '') : value);

it('are those of the contract', () => {
  expect(listPresets()).toEqual([...names, 'digits-rcm'].sort());
});

it('are packed with the package', () => {
  const { files } = JSON.parse(readFileSync(join(packageRoot(), 'package.json'), 'utf8')) as { files: string[] };
  expect(files).toContain('configs');
});

describe.each(listPresets())('%s', preset => {
  const { extends: parent, version: _version, ...own } = fileOf(preset);

  it('keeps every value of its file and is called like it', async () => {
    const values = await valuesOf(preset);
    expect(values.get('name')).toBe(preset);
    for (const [path, value] of leaves(own)) expect([path, values.get(path)]).toMatchObject([path, value]);
  });

  it('states only what differs from what it extends', async () => {
    if (parent === undefined) return;
    const [values, inherited] = await Promise.all([valuesOf(preset), valuesOf(String(parent))]);
    const differs = [...new Set([...values.keys(), ...inherited.keys()])].filter(
      path => JSON.stringify(values.get(path)) !== JSON.stringify(inherited.get(path)),
    );
    const stated = [...leaves(own)].map(([path]) => path);
    // A block of another kind is replaced as a whole: what the old one had is gone.
    const replaced = differs.filter(path => !values.has(path));
    expect(differs.filter(path => !replaced.includes(path)).sort()).toEqual(
      stated.filter(path => differs.includes(path)).sort(),
    );
    expect(stated.filter(path => !differs.includes(path))).toEqual([]);
  });
});

it('leave the four methods of a size the same but for the method and the steps', async () => {
  for (const size of sizes) {
    const [rcm, ...others] = await Promise.all(methods.map(method => valuesOf(`${size}-${method}`)));
    for (const other of others) {
      const differs = [...(rcm as Map<string, unknown>)].filter(([path, value]) => {
        return JSON.stringify(other?.get(path)) !== JSON.stringify(value);
      });
      expect(
        differs.map(([path]) => path).filter(path => !['name', 'method', 'schedule.steps'].includes(path)),
      ).toEqual([]);
    }
  }
});
