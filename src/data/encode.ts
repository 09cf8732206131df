/** `data encode`: a set from a folder of captioned pictures or videos. */
import { readdirSync } from 'node:fs';
import { extname, join, resolve } from 'node:path';
import { loadConfig } from '../config/load.ts';
import type { RcmConfigInput } from '../config/types.ts';
import { RcmBridgeError, throwIfAborted } from '../errors/index.ts';
import { anySignal, type BridgeContext } from '../runs/context.ts';
import { bytesIn, shardsIn } from './set-folder.ts';
import { commonStart, outOf, type SetOptions, type WrittenSet, writeSet } from './set-job.ts';

export interface EncodeDataOptions extends SetOptions {
  /** CSV or JSONL with `file` and `caption`. Default: the one in the folder. */
  readonly list?: string;
}

export interface EncodedSet extends Omit<WrittenSet, 'samples'> {
  readonly list: string;
}

/** As `buildData`: ends when the set is complete, and goes on where it stopped. */
export async function encodeData(
  context: BridgeContext,
  named: string,
  source: string | RcmConfigInput,
  options: EncodeDataOptions,
): Promise<EncodedSet> {
  throwIfAborted(anySignal(context.options.signal, options.signal));
  const began = Date.now();
  const { cwd, env } = context;
  const { config } = await loadConfig(source, { cwd, env, set: options.set ?? [] });
  const folder = resolve(cwd, named);
  const list = options.list === undefined ? findList(folder) : resolve(cwd, options.list);
  const out = resolve(cwd, outOf(config, options.out));
  const common = await commonStart(context, config, out, options.gpus);
  const made = await writeSet(
    context,
    { job: 'encode', ...common, folder, list },
    ['diffusers', 'transformers', 'av', 'ftfy', 'webdataset'],
    options,
  );
  return { out, list, made, shards: shardsIn(out), bytes: bytesIn(out), seconds: (Date.now() - began) / 1000 };
}

/** @throws E_USAGE */
function findList(folder: string): string {
  let names: readonly string[];
  try {
    names = readdirSync(folder).filter(name => ['.csv', '.jsonl'].includes(extname(name)));
  } catch (error) {
    throw new RcmBridgeError('E_USAGE', `The folder ${folder} cannot be read: ${(error as Error).message}.`, {
      hint: 'Name the folder with the pictures or videos.',
    });
  }
  const [name, ...others] = names;
  if (name !== undefined && others.length === 0) return join(folder, name);
  const text =
    name === undefined
      ? `${folder} holds no CSV or JSONL file.`
      : `${folder} holds several lists: ${names.join(', ')}.`;
  throw new RcmBridgeError('E_USAGE', text, {
    hint: 'Name a list with --list: a CSV with the columns file and caption, or JSONL of such objects.',
  });
}
