import { describe, expect, it } from 'vitest';
import type { Command, CommandGroup } from '../../../src/cli/command.ts';
import { explainUsage } from '../../../src/cli/usage.ts';

const distill: Command = {
  command: 'distill [config]',
  describe: '',
  options: yargs => yargs.option('steps', { type: 'string' }),
  run: async () => 0,
};
const runs: CommandGroup = {
  command: 'runs',
  describe: '',
  commands: [{ command: 'list', describe: '', options: yargs => yargs, run: async () => 0 }],
};

const explain = (message: string, ...argv: string[]) => explainUsage(new Error(message), argv, [distill, runs]);

describe('explainUsage', () => {
  it('names the nearest command', () => {
    expect(explain('Unknown argument: distil', 'distil')).toMatchObject({
      code: 'E_USAGE',
      exitCode: 2,
      message: 'unknown command "distil" for `rcm-bridge`.',
      hint: 'Did you mean distill?',
    });
  });

  it('names the nearest option of the command', () => {
    expect(explain('Unknown argument: stepz', 'distill', '--stepz', '3')).toMatchObject({
      message: 'unknown option --stepz for `rcm-bridge distill`.',
      hint: 'Did you mean --steps?',
    });
  });

  it('names the nearest word of a group', () => {
    expect(explain('Unknown argument: lst', 'runs', 'lst')).toMatchObject({ hint: 'Did you mean list?' });
  });

  it('points to the help when nothing is near', () => {
    expect(explain('Unknown argument: zzz', 'distill', '--zzz')).toMatchObject({
      hint: 'See `rcm-bridge distill --help`.',
    });
  });

  it('leaves errors that are not about usage alone', () => {
    const defect = new TypeError('x is not a function');
    expect(explainUsage(defect, ['distill'], [distill])).toBe(defect);
  });
});
