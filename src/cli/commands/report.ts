import type { Command } from '../command.ts';
import { withBridge } from '../open-bridge.ts';
import { runsDirOption } from '../options.ts';

export const report: Command = {
  command: 'report <run..>',
  describe: 'Write the HTML report of a run, or of several runs in one page, and print its path',
  options: yargs =>
    runsDirOption(yargs).positional('run', {
      type: 'string',
      array: true,
      describe: 'An id, the start of one, a path, or "last"; the report lies in the folder of the first',
    }),
  run: (options, output) =>
    withBridge(options, output, async bridge => {
      const path = await bridge.report(...(options.run as readonly unknown[]).map(String));
      output.result({ report: path }, path);
      return 0;
    }),
};
