import { spawnSync } from 'node:child_process';
import { statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { quickRun, runCli, temporaryFolder } from '../cli.ts';
import { onlyRun } from '../run-files.ts';

let folder: Awaited<ReturnType<typeof temporaryFolder>>;

beforeAll(async () => {
  folder = await temporaryFolder();
});

afterAll(() => folder.remove());

const quietFlags = [
  '--headless',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--enable-logging=stderr',
  '--virtual-time-budget=5000',
  '--window-size=1200,4000',
];

/** Opens a page in headless Chromium (installed by `make test-long`); what its console said, and a picture. */
function openPage(page: string): { readonly console: readonly string[]; readonly picture: string } {
  const picture = join(folder.path, 'page.png');
  const words = [...quietFlags, `--user-data-dir=${join(folder.path, 'profile')}`, `--screenshot=${picture}`];
  const result = spawnSync('chromium', [...words, pathToFileURL(page).href], { encoding: 'utf8', timeout: 60_000 });
  if (result.error) throw result.error;
  return { console: result.stderr.split('\n').filter(line => line.includes('CONSOLE')), picture };
}

describe('report/index.html in Chromium', () => {
  it('shows itself without a word on the console', async () => {
    const done = await runCli(['distill', ...quickRun(14)], { cwd: folder.path });
    expect(done.code, done.stderr).toBe(0);
    const { console: said, picture } = openPage(join(onlyRun(join(folder.path, 'runs')), 'report', 'index.html'));
    expect(said).toEqual([]);
    expect(statSync(picture).size).toBeGreaterThan(20_000);
  }, 180_000);

  it('would have been seen to complain', () => {
    const broken = join(folder.path, 'broken.html');
    writeFileSync(broken, '<!doctype html><script>undefinedFunction()</script>');
    expect(openPage(broken).console.join()).toContain('undefinedFunction');
  });
});
