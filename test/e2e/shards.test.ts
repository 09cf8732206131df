import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, realpathSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { packageRoot } from '../../src/package-root.ts';
import { readMetrics } from '../../src/runs/journal.ts';
import { type CliResult, runCli } from '../cli.ts';
import { testPython } from '../python.ts';
import { pythonWithDevTools } from '../python-with-dev-tools.ts';

// The paper's preset on random weights and shards in the real layouts: three starts of a sidecar, one of them to its end.
let root = '';
let python = '';
beforeAll(() => {
  root = realpathSync(mkdtempSync(join(tmpdir(), 'rcm-shards-')));
  python = pythonWithDevTools(join(root, 'python'));
  const script = join(packageRoot(), 'scripts', 'full-size-weights.py');
  const size = ['--model', 'wan2.1-tiny', '--frames', '9', '--height', '32', '--width', '48', '--samples', '6'];
  execFileSync(python, [script, '--out', join(root, 'tiny'), ...size], {
    env: { ...process.env, PYTHONPATH: [join(packageRoot(), 'py'), join(packageRoot(), 'kernels')].join(':') },
  });
});
afterAll(() => rm(root, { recursive: true, force: true }));

const distill = (set: Readonly<Record<string, string>>, interpreter = python): Promise<CliResult> => {
  const all = {
    'model.name': 'wan2.1-tiny',
    'model.textEncoder': 'labels',
    'model.path': join(root, 'tiny', 'weights'),
    'model.frames': '5',
    'model.height': '32',
    'model.width': '48',
    'data.path': join(root, 'tiny', 'data'),
    'compute.device': 'cpu',
    'compute.gpusPerNode': '1',
    'compute.parallel.shard': '1',
    'schedule.batchSize': '1',
    'losses.scm.tangentWarmupUpdates': '0',
    'logging.everySteps': '1',
    'checkpoints.export': '[]',
    'evaluation.steps': '[]',
    'evaluation.teacherSteps': '[]',
    ...set,
  };
  const words = Object.entries(all).flatMap(([key, value]) => ['--set', `${key}=${value}`]);
  return runCli(['distill', 'wan2.1-t2v-1.3b-480p-rcm', '--steps', '2', '--run-dir', join(root, 'run'), ...words], {
    cwd: root,
    env: { RCM_BRIDGE_PYTHON: interpreter, RCM_BRIDGE_HOME: join(root, 'home') },
  });
};

describe('distill on shards', () => {
  it.each([
    ['no webdataset', {}, 3, /E_PYTHON_PACKAGES: .*webdataset/, () => testPython()],
    ['no shards', { 'data.path': './nowhere' }, 3, /E_DATA_NOT_FOUND: .*nowhere/, () => python],
    ['latents of another size', { 'model.width': '64' }, 2, /E_DATA_SHAPE: .*\[16, 3, 4, 6\]/, () => python],
  ])(
    'refuses %s before there is a run',
    async (_, set, code, words, interpreter) => {
      const refused = await distill(set, interpreter());
      expect(refused, refused.stderr).toMatchObject({ code, stdout: '' });
      expect(refused.stderr).toMatch(words);
      expect(refused.stderr.trim().split('\n')).toHaveLength(2);
      expect(existsSync(join(root, 'run'))).toBe(false);
    },
    120_000,
  );

  it('trains the network of the folder on its samples', async () => {
    const done = await distill({});
    expect(done.code, done.stderr).toBe(0);
    const metrics = readMetrics(join(root, 'run'));
    expect(metrics.map(({ step, values }) => [step, values['data/epoch'], values['data/bad_samples']])).toEqual([
      [1, 0, 0],
      [2, 0, 0],
    ]);
    expect(readdirSync(join(root, 'home', 'cache', 'shard-indexes'))).toHaveLength(1);
  });
});
