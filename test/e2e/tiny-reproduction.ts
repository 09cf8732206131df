import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, realpathSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { packageRoot } from '../../src/package-root.ts';
import { cliEnvironment } from '../cli.ts';
import { pythonWithDevTools } from '../python-with-dev-tools.ts';
import { makeTinyModels, type TinyModel } from '../tiny-models.ts';

/** A paper preset whose weights are swapped for tiny ones in the real layouts: the sizes of test/py/encoders/tiny_models.py. */
export interface TinyPreset {
  readonly preset: string;
  readonly model: TinyModel;
  readonly set: Readonly<Record<string, string>>;
}

export const wan: TinyPreset = {
  preset: 'wan2.1-t2v-1.3b-480p-rcm',
  model: 'wan_original',
  set: {
    'model.name': 'wan2.1-tiny',
    'model.overrides.dim': '24',
    'model.overrides.numHeads': '2',
    'model.overrides.numLayers': '1',
    'model.overrides.ffnDim': '16',
    'model.overrides.textDim': '16',
    'model.frames': '5',
  },
};

export const cosmos: TinyPreset = {
  preset: 'cosmos-predict2-t2i-2b-rcm',
  model: 'cosmos_diffusers',
  set: {
    'model.name': 'cosmos-predict2-tiny',
    'model.overrides.dim': '32',
    'model.overrides.numHeads': '2',
    'model.overrides.numLayers': '1',
    'model.overrides.adalnLoraDim': '8',
    'model.overrides.textDim': '16',
  },
};

export interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface Reproduction {
  readonly root: string;
  readonly runDir: string;
  readonly dataDir: string;
  readonly python: string;
  /** What swaps the weights, as words of a command line. */
  readonly settings: readonly string[];
  /** Runs scripts/reproduce.sh to its end. `onStderr` sees all of stderr so far, and the process, to kill it. */
  run(env: NodeJS.ProcessEnv, onStderr?: (text: string, child: ChildProcess) => void): Promise<Ended>;
  remove(): Promise<void>;
}

export function tinyReproduction({ preset, model, set }: TinyPreset): Reproduction {
  const root = realpathSync(mkdtempSync(join(tmpdir(), 'rcm-reproduce-')));
  const python = pythonWithDevTools(join(root, 'python'));
  makeTinyModels(root, [model]);
  const runDir = join(root, 'run');
  const dataDir = join(root, 'data');
  const all = {
    ...set,
    'model.path': join(root, model),
    'model.textEncoder': 'labels', // a width of 16 is no width of the real one
    'model.height': '32',
    'model.width': '48',
    'data.path': dataDir,
    'compute.device': 'cpu',
    'compute.gpusPerNode': '1',
    'compute.parallel.shard': '1',
    'compute.threads': '1',
    'schedule.batchSize': '1',
    'schedule.microBatchSize': '1',
    'losses.scm.tangentWarmupUpdates': '0',
    'logging.everySteps': '1',
    'checkpoints.everySteps': '2',
    'evaluation.steps': '[1]',
    'evaluation.teacherSteps': '[]',
    'evaluation.previews.everySteps': 'null',
  };
  const settings = Object.entries(all).flatMap(([key, value]) => ['--set', `${key}=${value}`]);
  const own = { ...cliEnvironment(root), RCM_BRIDGE_PYTHON: python, RUN_DIR: runDir, OMP_NUM_THREADS: '1' };
  return {
    root,
    runDir,
    dataDir,
    python,
    settings,
    run: (env, onStderr) => {
      const child = spawn('bash', [join(packageRoot(), 'scripts', 'reproduce.sh'), preset, ...settings], {
        cwd: root,
        env: { ...own, ...env },
        detached: true, // a process group of its own, so that a kill reaches all of it
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      let stdout = '';
      let stderr = '';
      child.stdout.on('data', chunk => {
        stdout += String(chunk);
      });
      child.stderr.on('data', chunk => {
        stderr += String(chunk);
        onStderr?.(stderr, child);
      });
      return new Promise(resolve => {
        child.once('close', (code, signal) => resolve({ code, signal, stdout, stderr }));
      });
    },
    remove: () => rm(root, { recursive: true, force: true, maxRetries: 5 }),
  };
}
