import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, statSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { packageRoot } from '../../src/package-root.ts';
import { quickRun, temporaryFolder } from '../cli.ts';
import { testPython } from '../python.ts';
import { readJson } from '../run-files.ts';

const script = (name: string): string => join(packageRoot(), 'scripts', name);

let folder: Awaited<ReturnType<typeof temporaryFolder>>;
let bundle: string;
let path: string;

/** The wheels are for the Python of the tests, which need not be the 3.12 that the bundle has by default. */
beforeAll(async () => {
  folder = await temporaryFolder();
  bundle = join(folder.path, 'bundle');
  path = pathWithoutNode(join(folder.path, 'bin'));
  const version = execFileSync(testPython(), ['-c', 'import sys; print("%d.%d" % sys.version_info[:2])'], {
    encoding: 'utf8',
  });
  execFileSync('bash', [script('gpu-bundle.sh'), '--python', version.trim(), '--out', bundle], { stdio: 'pipe' });
}, 600_000);

afterAll(() => folder.remove());

/** One folder of links to what the shell finds, but for Node's programs. */
function pathWithoutNode(links: string): string {
  mkdirSync(links);
  const programs = ['/bin', '/usr/bin'].flatMap(from =>
    readdirSync(from).map(name => [name, join(from, name)] as const),
  );
  for (const [name, target] of new Map(programs))
    if (!/^(node|npm|npx|corepack)/.test(name)) symlinkSync(target, join(links, name));
  return links;
}

function onGpu(...words: readonly string[]) {
  return spawnSync('bash', [script('on-gpu.sh'), ...words], {
    cwd: folder.path,
    encoding: 'utf8',
    timeout: 240_000,
    env: {
      PATH: path,
      HOME: folder.path,
      TMPDIR: folder.path,
      RCM_GPU_BUNDLE: bundle,
      RCM_BRIDGE_HOME: join(folder.path, 'home'),
      RCM_BRIDGE_PYTHON: testPython(),
      NO_COLOR: '1',
    },
  });
}

describe('the bundle on a machine without Node', () => {
  it('has a size that may be carried', () => {
    expect(statSync(join(bundle, 'bundle.tar.xz')).size).toBeLessThan(60 * 1024 * 1024);
    expect(spawnSync('node', [], { env: { PATH: path } }).error).toBeDefined();
  });

  it('unpacks once and runs the shipped command line with the packages it brought', () => {
    const first = onGpu('doctor', '--json');
    expect(first.stderr).toContain('unpacking');
    expect(first.status, first.stderr).toBe(0);
    const facts = JSON.parse(first.stdout);
    expect(facts.node).toMatch(/^22\./);
    expect(facts.python.selected).toMatchObject({ source: 'explicit', packages: { webdataset: expect.any(String) } });
    expect(onGpu('doctor', '--json').stderr).toBe('');
  }, 300_000);

  it('distils', () => {
    const run = onGpu('distill', ...quickRun(3), '--run-dir', 'run');
    expect(run.status, run.stderr).toBe(0);
    expect(readJson(join(folder.path, 'run', 'run.json'))).toMatchObject({ state: 'succeeded', progress: { step: 3 } });
  }, 300_000);
});
