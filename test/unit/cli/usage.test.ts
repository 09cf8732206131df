import { describe, expect, it } from 'vitest';
import type { Command, CommandGroup } from '../../../src/cli/command.ts';
import { explainUsage, helpHint } from '../../../src/cli/usage.ts';

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

const resume: Command = { ...distill, command: 'resume <run>' };

const explain = (message: string, ...argv: string[]) => explainUsage(new Error(message), argv, [distill, resume, runs]);

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

  it('knows options that switch something off', () => {
    expect(explain('Unknown argument: progres', 'distill', '--no-progres')).toMatchObject({
      message: 'unknown option --no-progres for `rcm-bridge distill`.',
      hint: 'Did you mean --no-progress?',
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

  it('names an unknown option where no command is given', () => {
    expect(explain('Name a command.', '--helpp')).toMatchObject({
      message: 'unknown option --helpp for `rcm-bridge`.',
      hint: 'Did you mean --help?',
    });
    expect(explain('Name a command.', '--json', '-vv', '--no-progress')).toMatchObject({ message: 'Name a command.' });
  });

  it('says in plain words what yargs says in its own', () => {
    const choices = 'Invalid values:\n  Argument: format, Given: "jsn", Choices: "text", "json", "ndjson"';
    expect(explain(choices, 'distill', '--format', 'jsn')).toMatchObject({
      message: '--format takes text, json, ndjson, not "jsn".',
      hint: 'Did you mean json?',
    });
    expect(explain('Not enough arguments following: set', 'distill', '--set')).toMatchObject({
      message: '--set needs a value.',
    });
    const missing = 'Not enough non-option arguments: got 0, need at least 1';
    expect(explain(missing, 'resume')).toMatchObject({ message: '`resume` needs <run>.' });
  });

  it('leaves errors that are not about usage alone', () => {
    const defect = new TypeError('x is not a function');
    expect(explainUsage(defect, ['distill'], [distill])).toBe(defect);
  });
});

it.each([
  [['runs', 'list', '--x'], 'rcm-bridge runs list'],
  [['-q', 'distill', 'my.yaml'], 'rcm-bridge distill'],
  [[], 'rcm-bridge'],
])('the help for %j is that of %s', (argv, command) => {
  expect(helpHint(argv, [distill, resume, runs])).toBe(`See \`${command} --help\`.`);
});
