import { basename } from 'node:path';
import type { Bridge, WeightsConversion, WeightsInspection, WeightsList, WeightsProgress } from '../../index.ts';
import { inGigabytes } from '../../logging/sizes.ts';
import type { Command, CommandGroup, Options } from '../command.ts';
import { countedWork } from '../counted-work.ts';
import { withBridge } from '../open-bridge.ts';
import { consentOptions, pythonOption, text } from '../options.ts';
import type { Output } from '../output.ts';
import { fetch } from './weights-fetch.ts';

const layouts = ['official', 'diffusers', 'comfyui'] as const;
const dtypes = ['bf16', 'fp16', 'fp32'] as const;

const list: Command = {
  command: 'list',
  describe: 'List the networks of this version, where their weights are published, and copies on this machine',
  options: yargs => yargs,
  run: (options, output) =>
    withBridge(options, output, async bridge => {
      const found = await bridge.weights.list();
      output.result({ ...found }, describeList(found));
      return 0;
    }),
};

const weightsArgument: Command['options'] = yargs =>
  consentOptions(pythonOption(yargs))
    .positional('weights', { type: 'string', describe: 'A file, a folder, builtin:NAME or hf:OWNER/NAME' })
    .option('model', {
      type: 'string',
      requiresArg: true,
      describe: 'The network they should be of (default: what their shapes show)',
    });

const verify: Command = {
  command: 'verify <weights>',
  describe: 'Read weights to the end: which network, complete, finite, of the published hash',
  options: weightsArgument,
  run: (options, output) =>
    work(options, output, async (bridge, shared) => {
      const verified = await bridge.weights.verify(String(text(options, 'weights')), shared);
      const hashes = verified.hashes.map(({ sha256, file }) => `sha256    ${sha256}  ${basename(file)}`);
      const { inspection, ...rest } = verified;
      output.result(
        { ...inspection, ...rest },
        [...describeInspection(inspection), 'verified  complete and finite', ...hashes].join('\n'),
      );
    }),
};

const convert: Command = {
  command: 'convert <weights>',
  describe: 'Write weights in another layout or dtype',
  options: yargs =>
    weightsArgument(yargs)
      .option('to', { choices: layouts, demandOption: true, requiresArg: true, describe: 'Layout of the result' })
      .option('out', {
        type: 'string',
        requiresArg: true,
        describe: 'Folder, or file for official and comfyui (default ./<name>-<layout>)',
      })
      .option('dtype', { choices: dtypes, requiresArg: true, describe: 'Of the result (default: as they are stored)' })
      .option('verify', { type: 'boolean', describe: 'Read the result back and compare it, and a forward pass' }),
  run: (options, output) =>
    work(options, output, async (bridge, shared) => {
      const weights = String(text(options, 'weights'));
      const to = layouts.find(layout => layout === text(options, 'to')) ?? 'official';
      const dtype = dtypes.find(known => known === text(options, 'dtype'));
      const converted = await bridge.weights.convert(weights, {
        ...shared,
        to,
        out: text(options, 'out') ?? `${nameOf(weights)}-${to}`,
        verify: options.verify === true,
        overwrite: options.yes === true,
        ...(dtype === undefined ? {} : { dtype }),
      });
      output.result({ ...converted }, describeConversion(converted));
    }),
};

interface Shared {
  readonly model?: string;
  readonly signal: AbortSignal;
  readonly onProgress: (progress: WeightsProgress) => void;
}

const work = (
  options: Options,
  output: Output,
  use: (bridge: Bridge, shared: Shared) => Promise<void>,
): Promise<number> => {
  const model = text(options, 'model');
  return countedWork(options, output, 'nothing was written.', (bridge, { signal, progress }) =>
    use(bridge, { signal, onProgress: progress.show, ...(model === undefined ? {} : { model }) }),
  );
};

/** `Wan2.1-T2V-1.3B` of a path, a file or a locator. */
const nameOf = (weights: string): string =>
  basename(weights.replace(/^[a-z]+:/, '').replace(/@.*$/, '')).replace(
    /\.(safetensors|pth|pt|safetensors\.index\.json)$/,
    '',
  );

const count = (value: number): string => value.toLocaleString('en');

function describeInspection({
  path,
  layout,
  network,
  dtypes,
  tensors,
  parameters,
  bytes,
}: WeightsInspection): string[] {
  const overrides = Object.entries(network?.overrides ?? {}).map(([key, value]) => `${key}=${JSON.stringify(value)}`);
  const stored = Object.entries(dtypes).map(([name, n]) => (n === tensors ? name : `${n} in ${name}`));
  return [
    `weights   ${path}`,
    `network   ${[network?.name, ...overrides].join(' ')}`,
    `layout    ${layout}, ${count(tensors)} tensors, ${stored.join(', ')}`,
    `size      ${count(parameters)} parameters, ${inGigabytes(bytes)}`,
  ];
}

function describeConversion({ path, files, bytes, checked, inspection }: WeightsConversion): string {
  const { difference, reason } = checked?.forward ?? {};
  const forward =
    difference === 0
      ? 'a forward pass is equal'
      : typeof difference === 'number'
        ? `a forward pass differs by ${Number(difference.toPrecision(2))} of the largest velocity`
        : `no forward pass: ${reason}`;
  return [
    ...describeInspection(inspection),
    `written   ${path} (${files.length} ${files.length === 1 ? 'file' : 'files'}, ${inGigabytes(bytes)})`,
    ...(checked ? [`verified  ${count(checked.tensors)} tensors equal bit for bit; ${forward}`] : []),
  ].join('\n');
}

function describeList({ networks, shipped }: WeightsList): string {
  const lines = networks.flatMap(({ name, parameters, bytes, releases }) => [
    `${name.padEnd(26)}${count(parameters)} parameters, ${inGigabytes(bytes.bf16)} in bf16`,
    ...releases.map(
      ({ layout, locator, file, path }) => `  ${layout.padEnd(10)}${path ?? 'not here'}  ${locator} (${file})`,
    ),
  ]);
  return [...lines, ...shipped.map(({ locator, path }) => `${locator.padEnd(26)}${path}`)].join('\n');
}

export const weights: CommandGroup = {
  command: 'weights',
  describe: 'Fetch published weights; look at weight files, verify and convert them',
  commands: [list, fetch, verify, convert],
};
