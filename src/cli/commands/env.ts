import type { Command, CommandGroup } from '../command.ts';
import { askOnTerminal, isOn } from '../consent.ts';
import { consentOptions, pythonOption, text } from '../options.ts';

const setup: Command = {
  command: 'setup',
  describe: 'Make the managed Python environment, unless an interpreter on this machine will do',
  options: yargs =>
    consentOptions(pythonOption(yargs))
      .option('torch', {
        type: 'string',
        requiresArg: true,
        describe: 'auto, cpu, cuda or a pip requirement (default auto); makes the managed environment in any case',
      })
      .option('with', {
        choices: ['media'] as const,
        requiresArg: true,
        describe: 'Add packages: media (huggingface_hub, diffusers, transformers, webdataset, av, ftfy)',
      }),
  run: async (options, output) => {
    const { ensurePython, mediaNames, setupManaged, setupMedia } = await import('../../python/index.ts');
    const torch = text(options, 'torch');
    const shared = {
      env: process.env,
      cwd: process.cwd(),
      consent: options.yes === true || isOn(process.env.RCM_BRIDGE_YES) || askOnTerminal,
      offline: options.offline === true || isOn(process.env.RCM_BRIDGE_OFFLINE),
      onProgress: (line: string) => output.say(line),
    };
    const explicit = text(options, 'python') ?? process.env.RCM_BRIDGE_PYTHON;
    const media = text(options, 'with') === 'media';
    const python =
      torch === undefined
        ? await ensurePython({ ...shared, explicit, ...(media ? { needs: mediaNames } : {}) })
        : await (media ? setupMedia : setupManaged)({ ...shared, torch, base: explicit });
    output.result({ python }, python.executable);
    return 0;
  },
};

const path: Command = {
  command: 'path',
  describe: 'Print the interpreter that would be used',
  options: pythonOption,
  run: async (options, output) => {
    const { resolvePython } = await import('../../python/index.ts');
    const explicit = text(options, 'python') ?? process.env.RCM_BRIDGE_PYTHON;
    const python = await resolvePython({ env: process.env, cwd: process.cwd(), explicit });
    output.result({ path: python.executable, source: python.source, version: python.version }, python.executable);
    return 0;
  },
};

export const env: CommandGroup = {
  command: 'env',
  describe: 'The Python environment',
  commands: [setup, path],
};
