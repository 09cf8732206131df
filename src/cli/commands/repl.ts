import type { Command } from '../command.ts';
import { pythonOption, text } from '../options.ts';

export const repl: Command = {
  command: 'repl',
  describe: "Node's prompt with Python at hand, in a process of its own",
  options: pythonOption,
  run: async options => {
    const { resolvePython } = await import('../../python/find.ts');
    const { runRepl } = await import('../../python/interactive.ts');
    const explicit = text(options, 'python') ?? process.env.RCM_BRIDGE_PYTHON;
    const python = await resolvePython({
      env: process.env,
      cwd: process.cwd(),
      ...(explicit === undefined ? {} : { explicit }),
    });
    return runRepl(python.executable);
  },
};
