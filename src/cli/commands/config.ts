import { errorCodes, RcmBridgeError } from '../../errors/index.ts';
import type { ConfigCheck } from '../../index.ts';
import type { Command, CommandGroup } from '../command.ts';
import { withBridge } from '../open-bridge.ts';
import { pairs, pythonOption, setOption, text } from '../options.ts';

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
  describe: 'Check a config and the weight files it names, without starting anything; TypeScript is type-checked',
  options: yargs => pythonOption(configArgument(yargs)),
  run: (options, output) =>
    withBridge(options, output, async bridge => {
      const source = text(options, 'config') ?? 'digits-rcm';
      const checked = await bridge.check(source, { set: pairs(options) });
      const problem = firstProblem(checked.weights);
      // In text form a refused command prints nothing but the error; machines get the whole list with it.
      if (!problem || output.format !== 'text') output.result({ ...checked }, describeCheck(source, checked));
      if (problem) throw problem;
      for (const warning of checked.warnings) output.say(warning);
      if (checked.notCompared !== null) output.say(`The weights were not compared. ${checked.notCompared}`);
      return 0;
    }),
};

/** Missing weights come before weights that do not fit, as in every check of this package. */
function firstProblem(weights: ConfigCheck['weights']): RcmBridgeError | undefined {
  const problems = weights.flatMap(({ key, problem }) => (problem === null ? [] : [{ key, ...problem }]));
  const [first] = problems.toSorted((left, right) => errorCodes[left.code].exitCode - errorCodes[right.code].exitCode);
  if (first === undefined) return undefined;
  const more = problems.length > 1 ? ` (${problems.length - 1} more)` : '';
  return new RcmBridgeError(first.code, `${first.key}: ${first.message}${more}`, { hint: first.hint });
}

function describeWeights({ adapter, path, layout, tensors, dtypes, fits }: ConfigCheck['weights'][number]): string {
  if (!fits) return `${adapter ? 'adapters, ' : ''}not compared: ${path}`;
  return `fits: ${layout} layout, ${tensors} tensors in ${Object.keys(dtypes ?? {}).join(' and ')}, ${path}`;
}

function describeCheck(source: string, { sample, weights }: ConfigCheck): string {
  const row = (name: string, value: string): string => `${name.padEnd(16)}${value}`;
  const count = (value: number): string => value.toLocaleString('en');
  return [
    `${source} is valid.`,
    row('network', `${sample.network}, ${count(sample.parameters)} parameters`),
    row('sample', `latent ${sample.latent.join(' x ')}, ${count(sample.tokens)} tokens`),
    ...weights.map(one => row(one.key, describeWeights(one))),
  ].join('\n');
}

export const config: CommandGroup = {
  command: 'config',
  describe: 'Look at and check configs',
  commands: [print, check],
};
