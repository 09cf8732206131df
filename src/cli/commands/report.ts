import type { Command } from '../command.ts';
import { withBridge } from '../open-bridge.ts';
import { runsDirOption, text } from '../options.ts';

export const report: Command = {
  command: 'report <run>',
  describe: 'Write the HTML report of a run again and print its path',
  options: yargs =>
    runsDirOption(yargs).positional('run', { type: 'string', describe: 'An id, the start of one, a path, or "last"' }),
  run: (options, output) =>
    withBridge(options, output, async bridge => {
      const path = await bridge.report(String(text(options, 'run')));
      output.result({ report: path }, path);
      return 0;
    }),
};
