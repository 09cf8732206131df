/** What a run would do, in words and as data; nothing is started or created. */
import { join } from 'node:path';
import { processesOf } from '../config/parallel.ts';
import { packageRoot } from '../package-root.ts';
import type { BridgeContext } from './context.ts';
import type { RunOptions } from './options.ts';
import type { Job } from './record.ts';
import { newRunId } from './run-id.ts';
import type { PreparedRun } from './start-run.ts';

export interface DryRun {
  readonly job: Job;
  readonly name: string;
  readonly method: string;
  readonly network: string;
  readonly steps: number;
  readonly batchSize: number;
  readonly device: string;
  /** Processes; each has a GPU of its own where there are GPUs. */
  readonly processes: number;
  readonly runsDir: string;
  readonly runDir: string | null;
  readonly python: { readonly executable: string; readonly version: string };
  /** Program and arguments of the sidecar. */
  readonly launchCommand: readonly string[];
  readonly evaluationRows: number;
  /** What `--launcher slurm` would submit. */
  readonly script: string | null;
  readonly text: string;
}

export async function describeDryRun(
  context: BridgeContext,
  prepared: PreparedRun,
  options: Pick<RunOptions, 'slurm' | 'smoke' | 'ignorePlan'>,
): Promise<DryRun> {
  const { job, resolved, steps, plan } = prepared;
  const { config } = resolved;
  const { executable, version } = prepared.python;
  const facts = {
    job,
    name: config.name,
    method: job === 'pretrain' ? 'flow matching' : config.method,
    network: config.model.name,
    steps,
    batchSize: job === 'pretrain' ? config.pretrain.batchSize : config.schedule.batchSize,
    device: config.compute.device,
    processes: processesOf(config).world,
    runsDir: context.runsDir,
    runDir: prepared.runDir ?? null,
    python: { executable, version },
    ...(await launchOf(context, prepared, options)),
    evaluationRows: plan.rows.length,
  };
  return { ...facts, text: textOf(facts, plan.samples) };
}

async function launchOf(
  context: BridgeContext,
  { job, resolved: { config }, python, placement, runDir }: PreparedRun,
  options: Pick<RunOptions, 'slurm' | 'smoke' | 'ignorePlan'>,
): Promise<Pick<DryRun, 'launchCommand' | 'script'>> {
  if (placement.launcher !== 'slurm') {
    return { launchCommand: [python.executable, '-P', join(packageRoot(), 'py', 'launch.py')], script: null };
  }
  const { scriptOf, slurmFiles } = await import('./launchers/slurm.ts');
  const place = runDir ?? join(context.runsDir, newRunId(config.name));
  const script = scriptOf(context, { job, config, runDir: place }, options);
  return { launchCommand: ['sbatch', '--parsable', slurmFiles(place).script], script };
}

function textOf(plan: Omit<DryRun, 'text'>, samples: number): string {
  const processes = plan.processes === 1 ? '' : `, ${plan.processes} processes`;
  return [
    `${plan.job === 'pretrain' ? 'Pretrain' : 'Distil'} ${plan.network} by ${plan.method}: ${plan.steps} steps of ${plan.batchSize} samples on ${plan.device}${processes}`,
    `run       ${plan.runDir ?? `a new folder in ${plan.runsDir}`}`,
    `evaluate  ${plan.evaluationRows} rows of up to ${samples} samples`,
    `python    ${plan.python.executable} (${plan.python.version})`,
    `launch    ${plan.launchCommand.join(' ')}`,
    ...(plan.script === null ? [] : ['', plan.script.trimEnd()]),
  ].join('\n');
}
