import { execFileSync } from 'node:child_process';
import { mkdirSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { cliEnvironment, quickRun, temporaryFolder } from '../cli.ts';
import { filesOf, layOut, pack } from '../packed.ts';
import { onlyRun, readJson } from '../run-files.ts';

let folder: Awaited<ReturnType<typeof temporaryFolder>>;
let project: string;
let tarball: string;

beforeAll(async () => {
  folder = await temporaryFolder();
  tarball = pack(folder.path);
  project = join(folder.path, 'project');
  mkdirSync(project);
  writeFileSync(join(project, 'package.json'), '{"name":"user","private":true}');
  layOut(tarball, project);
});

afterAll(() => folder.remove());

const run = (words: readonly string[], timeout = 90_000): string =>
  execFileSync(process.execPath, words, {
    cwd: project,
    env: cliEnvironment(project),
    encoding: 'utf8',
    timeout,
    stdio: ['ignore', 'pipe', 'pipe'],
  });

describe('the packed package', () => {
  it('holds what it needs and nothing of this checkout', () => {
    const files = filesOf(tarball);
    for (const needed of [
      'bin/rcm-bridge.js',
      'dist/index.js',
      'dist/index.d.ts',
      'py/launch.py',
      'schema/protocol.v1.json',
      'configs/digits-rcm.yaml',
      'NOTICE',
      'LICENSE',
      'README.md',
      'CHANGELOG.md',
    ]) {
      expect(files).toContain(needed);
    }
    expect(
      files.filter(name => /__pycache__|\.venv|node_modules|(^|\/)tests?\/|\.pytest_cache|\.hypothesis/.test(name)),
    ).toEqual([]);
    expect(statSync(tarball).size).toBeLessThan(6_000_000);
  });

  it('distils 20 steps from the command line', () => {
    run(['node_modules/rcm-bridge/bin/rcm-bridge.js', 'distill', ...quickRun(20), '--runs-dir', 'cli']);
    expect(readJson(join(onlyRun(join(project, 'cli')), 'run.json'))).toMatchObject({
      state: 'succeeded',
      progress: { step: 20 },
    });
  });

  it('is imported and required, and starts no process by that', () => {
    const check = `
      const children = require('node:fs').readFileSync('/proc/self/task/' + process.pid + '/children', 'utf8').trim();
      if (children) throw new Error('started ' + children);
      if (typeof api.createBridge !== 'function' || typeof api.isRcmBridgeError !== 'function') throw new Error('no API');
    `;
    run(['-e', `const api = require('rcm-bridge'); ${check}`], 20_000);
    run(['-e', `import('rcm-bridge').then(api => { ${check} })`], 20_000);
    run(
      [
        '-e',
        "import('rcm-bridge/config').then(c => { if (typeof c.defineConfig !== 'function') throw new Error('no defineConfig') })",
      ],
      20_000,
    );
  });
});
