import type { Command, CommandGroup } from '../command.ts';
import { pairs, setOption, text } from '../options.ts';

const configArgument: Command['options'] = yargs =>
  setOption(yargs).positional('config', { type: 'string', describe: 'A file, or a preset (default digits-rcm)' });

const print: Command = {
  command: 'print [config]',
  describe: 'Print the whole config with every default filled in, and what each auto became',
  options: configArgument,
  run: async (options, output) => {
    const { loadConfig } = await import('../../config/load.ts');
    const resolved = await loadConfig(text(options, 'config') ?? 'digits-rcm', {
      cwd: process.cwd(),
      env: process.env,
      set: pairs(options),
    });
    const { describeAuto, printConfig } = await import('../../config/print.ts');
    const { config, auto } = describeAuto(resolved.config);
    output.result({ config, auto }, printConfig(config, auto));
    return 0;
  },
};

const check: Command = {
  command: 'check [config]',
  describe: 'Check a config without starting anything; TypeScript configs are type-checked',
  options: configArgument,
  run: async (options, output) => {
    const { loadConfig } = await import('../../config/load.ts');
    const source = text(options, 'config') ?? 'digits-rcm';
    const resolved = await loadConfig(source, {
      cwd: process.cwd(),
      env: process.env,
      set: pairs(options),
      typeCheck: true,
    });
    output.result({ valid: true, name: resolved.config.name, method: resolved.config.method }, `${source} is valid.`);
    return 0;
  },
};

export const config: CommandGroup = {
  command: 'config',
  describe: 'Look at and check configs',
  commands: [print, check],
};
