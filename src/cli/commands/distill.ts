import type { Argv } from 'yargs';
import type { Command, Options } from '../command.ts';
import { detachRun } from '../detach-run.ts';
import { followRun } from '../follow-run.ts';
import { withBridge } from '../open-bridge.ts';
import {
  consentOptions,
  detachOption,
  graceMs,
  graceOption,
  pairs,
  placement,
  placementOptions,
  pythonOption,
  runsDirOption,
  setOption,
  text,
  texts,
  wholeNumber,
} from '../options.ts';
import type { Output } from '../output.ts';

export const distill: Command = {
  command: 'distill [config]',
  describe: 'Distil a teacher into a student that samples in 1 to 4 steps',
  options: yargs =>
    startOptions(yargs, 'schedule.steps').option('ignore-plan', {
      type: 'boolean',
      describe: "Start although the plan says that it does not fit into the GPUs' memory",
    }),
  run: (options, output) => start('distill', options, output),
};

/** Options of the commands that start a run. */
export const startOptions = (yargs: Argv, stepsKey: string): Argv =>
  graceOption(detachOption(consentOptions(pythonOption(runsDirOption(placementOptions(setOption(yargs)))))))
    .positional('config', { type: 'string', describe: 'A file, or a preset (default digits-rcm)' })
    .option('steps', { type: 'string', requiresArg: true, describe: `Training steps in all (${stepsKey})` })
    .option('gpus', {
      type: 'string',
      requiresArg: true,
      describe: 'GPUs used on each machine; with compute.device=cpu, processes (compute.gpusPerNode)',
    })
    .option('nodes', { type: 'string', requiresArg: true, describe: 'Machines (compute.nodes)' })
    .option('launcher', {
      choices: ['auto', 'local', 'torchrun', 'slurm'] as const,
      describe: 'How the processes are started (compute.launcher)',
    })
    .option('slurm', {
      type: 'string',
      array: true,
      nargs: 1,
      describe: 'An option of sbatch for --launcher slurm: partition=NAME, time=HH:MM:SS, account=NAME, ...',
    })
    .option('run-dir', {
      type: 'string',
      requiresArg: true,
      describe: 'Folder of this run, instead of one below --runs-dir',
    })
    .option('if-exists', {
      choices: ['error', 'resume'] as const,
      default: 'error',
      describe: 'What to do when --run-dir holds a run',
    })
    .option('name', { type: 'string', requiresArg: true, describe: 'Name in the run id and in reports' })
    .option('smoke', { type: 'boolean', describe: 'Two steps of each phase, a checkpoint, a sample and an evaluation' })
    .option('dry-run', { type: 'boolean', describe: 'Check everything and print the plan, start nothing' });

export async function start(kind: 'distill' | 'pretrain', options: Options, output: Output): Promise<number> {
  const config = text(options, 'config') ?? 'digits-rcm';
  const steps = wholeNumber(options, 'steps', 1);
  const gpus = wholeNumber(options, 'gpus', 1);
  const nodes = wholeNumber(options, 'nodes', 1);
  const launcher = text(options, 'launcher') as 'auto' | 'local' | 'torchrun' | 'slurm' | undefined;
  const name = text(options, 'name');
  const runDir = text(options, 'run-dir');
  const grace = graceMs(options);
  const runOptions = {
    set: pairs(options),
    smoke: options.smoke === true,
    ignorePlan: options['ignore-plan'] === true,
    ifExists: (text(options, 'if-exists') ?? 'error') as 'error' | 'resume',
    ...(steps === undefined ? {} : { steps }),
    ...placement(options),
    slurm: texts(options, 'slurm'),
    ...(gpus === undefined ? {} : { gpus }),
    ...(nodes === undefined ? {} : { nodes }),
    ...(launcher === undefined ? {} : { launcher }),
    ...(name === undefined ? {} : { name }),
    ...(runDir === undefined ? {} : { runDir }),
  };
  return withBridge(options, output, async bridge => {
    if (options['dry-run'] === true) {
      const dryRun = await bridge.dryRun(kind, config, runOptions);
      output.result({ ...dryRun }, dryRun.text);
      return 0;
    }
    if (options.detach === true) {
      return detachRun(() => bridge[kind](config, { ...runOptions, detached: true }), output);
    }
    return followRun(begun => bridge[kind](config, { ...runOptions, ...begun }), output, grace);
  });
}
