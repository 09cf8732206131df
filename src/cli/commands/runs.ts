import type { RunRecord } from '../../index.ts';
import type { Command, CommandGroup } from '../command.ts';
import { exitCodes } from '../exit-codes.ts';
import { withBridge } from '../open-bridge.ts';
import { runsDirOption, text } from '../options.ts';

const list: Command = {
  command: 'list',
  describe: 'List the runs, newest first',
  options: runsDirOption,
  run: (options, output) =>
    withBridge(options, output, async bridge => {
      const runs = await bridge.runs.list();
      output.result({ runs }, runs.map(describe).join('\n') || 'No runs yet.');
      return 0;
    }),
};

const runArgument: Command['options'] = yargs =>
  runsDirOption(yargs).positional('run', { type: 'string', describe: 'An id, the start of one, a path, or "last"' });

const show: Command = {
  command: 'show <run>',
  describe: 'Show one run: state, progress, checkpoints, result',
  options: runArgument,
  run: (options, output) =>
    withBridge(options, output, async bridge => {
      const run = await bridge.runs.open(String(text(options, 'run')));
      const shown = await run.describe();
      const unmet = shown.scorecard?.gates.filter(gate => !gate.met) ?? [];
      const lines = [
        describe(shown.run),
        `folder  ${run.dir}`,
        ...shown.checkpoints.map(c => `checkpoint  ${c}`),
        ...unmet.map(gate => `gate not met  ${gate.text}`),
      ];
      output.result({ ...shown }, lines.join('\n'));
      return 0;
    }),
};

const cancel: Command = {
  command: 'cancel <run>',
  describe: 'Stop a run after a checkpoint',
  options: yargs =>
    runArgument(yargs).option('checkpoint', {
      type: 'boolean',
      default: true,
      describe: 'Write a checkpoint first (--no-checkpoint: stop at once)',
    }),
  run: (options, output) =>
    withBridge(options, output, async bridge => {
      const run = await bridge.runs.open(String(text(options, 'run')));
      const answer = await run.cancel({ checkpoint: options.checkpoint !== false });
      output.result({ id: run.id, state: answer.state }, `${run.id} ${answer.state}`);
      return 0;
    }),
};

const describe = (run: RunRecord): string =>
  [
    run.id,
    run.state,
    `${run.progress.step}/${run.progress.steps}`,
    ...(run.error ? [run.error.code] : []),
    ...(run.exitCode === exitCodes.gateNotMet ? ['gates not met'] : []),
    ...(run.parent ? [`child of ${run.parent.id} from step ${run.parent.step}`] : []),
  ].join('  ');

export const runs: CommandGroup = {
  command: 'runs',
  describe: 'Look at runs and stop them',
  commands: [list, show, cancel],
};
