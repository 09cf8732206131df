import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { packageRoot } from '../../src/package-root.ts';
import { cliEnvironment, quickRun, temporaryFolder } from '../cli.ts';

let folder = '';
let remove: () => Promise<void>;
beforeEach(async () => {
  ({ path: folder, remove } = await temporaryFolder());
});
afterEach(() => remove());

function reproduce(env: NodeJS.ProcessEnv, ...words: readonly string[]) {
  return spawnSync('bash', [join(packageRoot(), 'scripts', 'reproduce.sh'), ...words], {
    encoding: 'utf8',
    env: { ...cliEnvironment(folder), RUN_DIR: join(folder, 'run'), ...env },
  });
}

it('a preset runs through all steps, and a second time only what is left', () => {
  const settings = ['digits-rcm', ...quickRun(3)];
  const first = reproduce({}, ...settings);
  expect(first.status, first.stderr).toBe(0);
  const record = JSON.parse(readFileSync(join(folder, 'run', 'run.json'), 'utf8'));
  expect(record).toMatchObject({ state: 'succeeded', progress: { step: 3 } });
  expect(existsSync(join(folder, 'run', 'report', 'index.html'))).toBe(true);
  expect(existsSync(join(folder, 'run', 'samples', 'reproduce'))).toBe(true);
  const again = reproduce({}, ...settings);
  expect(again.status, again.stderr).toBe(0);
  expect(again.stderr).not.toContain('== doctor');
  expect(again.stderr).not.toContain('== sample');
});
