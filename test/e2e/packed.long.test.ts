import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { cliEnvironment, quickRun, temporaryFolder } from '../cli.ts';
import { pack } from '../packed.ts';

/** Node binaries as npm packages; the newest of each line that the package supports, and one that it does not. */
const nodes = [
  { version: '20.20.2', works: true },
  { version: '22.23.3', works: true },
  { version: '24.21.0', works: true },
  { version: '18.20.8', works: false },
] as const;

let folder: Awaited<ReturnType<typeof temporaryFolder>>;
let project: string;

beforeAll(async () => {
  folder = await temporaryFolder();
  project = join(folder.path, 'project');
  mkdirSync(project);
  writeFileSync(join(project, 'package.json'), '{"name":"user","private":true}');
  const tarball = pack(folder.path);
  execFileSync('npm', ['install', '--ignore-scripts', '--no-audit', '--no-fund', tarball], {
    cwd: project,
    stdio: 'pipe',
  });
}, 300_000);

afterAll(() => folder.remove());

function nodeBinary(version: string): string {
  const at = join(folder.path, `node-${version}`);
  mkdirSync(at);
  const name = `node-${process.platform}-${process.arch}`;
  execFileSync(
    'npm',
    ['install', '--prefix', at, '--no-audit', '--no-fund', '--ignore-scripts', '--force', `${name}@${version}`],
    { stdio: 'pipe' },
  );
  return join(at, 'node_modules', name, 'bin', 'node');
}

const asImport = `
  const run = await bridge.distill('digits-rcm', { set: JSON.parse(process.argv[1]) });
  for await (const event of run) if (event.type === 'end') console.log('ended', event.state);
  const result = await run.result();
  console.log(result.state, result.step);
  await bridge.close();
`;

describe.each(nodes)('the installed package on Node $version', ({ version, works }) => {
  it(works ? 'distils 20 steps by command line, import and require' : 'says which Nodes work', () => {
    const node = nodeBinary(version);
    const cli = 'node_modules/rcm-bridge/bin/rcm-bridge.js';
    const options = {
      cwd: project,
      env: cliEnvironment(project),
      encoding: 'utf8',
      timeout: 120_000,
      stdio: 'pipe',
    } as const;
    if (!works) {
      expect(() => execFileSync(node, [cli, '--version'], options)).toThrow(/Node 20\.19/);
      return;
    }
    const pairs = quickRun(20).filter(word => word !== '--set');
    execFileSync(node, [cli, 'distill', ...quickRun(20)], options);
    const imported = `import { createBridge } from 'rcm-bridge'; const bridge = await createBridge({}); ${asImport}`;
    expect(execFileSync(node, ['--input-type=module', '-e', imported, JSON.stringify(pairs)], options)).toContain(
      'succeeded 20',
    );
    const required = `const { createBridge } = require('rcm-bridge'); (async () => { const bridge = await createBridge({}); ${asImport} })()`;
    expect(execFileSync(node, ['-e', required, JSON.stringify(pairs)], options)).toContain('succeeded 20');
  }, 420_000);
});
