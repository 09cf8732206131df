/**
 * Look into Python from Node: import a module, follow attributes, call, copy plain values back.
 * For reflection only (a checkpoint's keys, one more metric); training never goes through here.
 *
 * @example
 * ```ts
 * import { openPython } from 'rcm-bridge/interactive';
 * const py = await openPython({ executable: 'python3' });
 * try {
 *   const math = await py.import('math');
 *   const sqrt = await math.get('sqrt');
 *   console.log(await (await sqrt.call([2])).value()); // 1.4142135623730951
 * } finally {
 *   await py.close();
 * }
 * ```
 */
import { type ChildProcess, fork } from 'node:child_process';
import { join } from 'node:path';
import { PythonError, RcmBridgeError } from '../errors/index.ts';
import { packageRoot } from '../package-root.ts';
import {
  decodeValue,
  encodeValue,
  type HostReply,
  type PythonFrame,
  type PythonValue,
} from './interactive-messages.ts';

export type { PythonFrame, PythonValue } from './interactive-messages.ts';

const startTimeoutMs = 30_000;

export interface OpenPythonOptions {
  /** The interpreter, e.g. what `rcm-bridge env path` prints. */
  readonly executable: string;
  readonly signal?: AbortSignal;
}

/** An object that stays in Python. */
export interface PythonReference {
  /** The attribute `name`. */
  get(name: string): Promise<PythonReference>;
  /** `object[key]`. */
  item(key: PythonValue): Promise<PythonReference>;
  /** Calls the object. Arguments are plain values or references. */
  call(args?: readonly unknown[], kwargs?: Readonly<Record<string, unknown>>): Promise<PythonReference>;
  /** A copy: numbers (NaN and infinities too), text, bytes, lists, dicts, tensors and arrays up to 65,536 elements. */
  value(): Promise<PythonValue>;
  /** Python's `repr`. */
  text(): Promise<string>;
  /** Lets Python forget the object. */
  release(): Promise<void>;
}

export interface InteractivePython extends AsyncDisposable {
  import(module: string): Promise<PythonReference>;
  close(): Promise<void>;
}

type Answer = { readonly ok: unknown } | { readonly error: { type: string; message: string; frames: PythonFrame[] } };
type Waiting = { resolve(text: string): void; reject(error: Error): void };

/** The compiled host: it is forked, so it has to be JavaScript also where this file is loaded from source. */
const hostFile = (): string => join(packageRoot(), 'dist', 'python', 'interactive-host.js');

const hostEnvironment = (executable: string): NodeJS.ProcessEnv => ({
  ...process.env,
  PYTHON_BIN: executable,
  // Our own time limits hold; pythonia's would turn a long call into a wrong error.
  REQ_TIMEOUT: '0',
  PYTHONPATH: [join(packageRoot(), 'py'), join(packageRoot(), 'kernels')].join(
    process.platform === 'win32' ? ';' : ':',
  ),
  PYTHONNOUSERSITE: '1',
  PYTHONDONTWRITEBYTECODE: '1',
});

/** Starts Python in a child of its own. Rejects with E_INTERACTIVE_EXIT when that child ends. */
export async function openPython(options: OpenPythonOptions): Promise<InteractivePython> {
  options.signal?.throwIfAborted();
  const child = fork(hostFile(), [], {
    env: hostEnvironment(options.executable),
    serialization: 'advanced',
    stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
  });
  const channel = openChannel(child);
  await channel.ready(options.signal);
  return {
    import: async name => referenceTo(channel, await channel.ask({ op: 'import', name })),
    close: channel.close,
    [Symbol.asyncDispose]: channel.close,
  };
}

/** Runs the prompt of `rcm-bridge repl` on this terminal; resolves with its exit code. */
export function runRepl(executable: string): Promise<number> {
  const child = fork(hostFile(), ['repl'], { env: hostEnvironment(executable), stdio: 'inherit' });
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', code => resolve(code ?? 1));
  });
}

interface Channel {
  ready(signal?: AbortSignal): Promise<void>;
  ask(request: Readonly<Record<string, unknown>>): Promise<unknown>;
  close(): Promise<void>;
}

function openChannel(child: ChildProcess): Channel {
  const waiting = new Map<number, Waiting>();
  let lastId = 0;
  let stderrTail = '';
  let ended: Error | undefined;
  child.stderr?.on('data', chunk => {
    stderrTail = (stderrTail + String(chunk)).slice(-2_000);
  });
  child.on('message', (reply: HostReply) => {
    const asked = waiting.get(reply.id);
    waiting.delete(reply.id);
    if ('text' in reply) asked?.resolve(reply.text);
    else asked?.reject(exitError(reply.failed));
  });
  const exited = new Promise<void>(resolve => {
    const end = (what: string) => {
      ended ??= exitError([what, reasonIn(stderrTail)].filter(Boolean).join(' '));
      for (const asked of waiting.values()) asked.reject(ended);
      waiting.clear();
      resolve();
    };
    child.once('error', error => end(error.message));
    child.once('exit', (code, signal) => end(`The Python host ended (${signal ?? code}).`));
  });
  const wait = (id: number): Promise<string> =>
    new Promise((resolve, reject) => {
      if (ended) reject(ended);
      else waiting.set(id, { resolve, reject });
    });
  const close = async (): Promise<void> => {
    if (child.connected) child.disconnect();
    const timer = setTimeout(() => child.kill('SIGKILL'), 2_000);
    await exited;
    clearTimeout(timer);
  };
  return {
    close,
    async ready(signal) {
      const stop = () => child.kill('SIGKILL');
      const timer = setTimeout(stop, startTimeoutMs);
      signal?.addEventListener('abort', stop, { once: true });
      try {
        await wait(0);
      } catch (error) {
        await close();
        throw signal?.aborted ? signal.reason : error;
      } finally {
        clearTimeout(timer);
        signal?.removeEventListener('abort', stop);
      }
    },
    async ask(request) {
      const id = ++lastId;
      const answered = wait(id);
      if (child.connected) child.send({ id, request: JSON.stringify(request) });
      const answer = JSON.parse(await answered) as Answer;
      if ('error' in answer) throw pythonError(answer.error);
      return answer.ok;
    },
  };
}

/** The line of Node's or Python's last words that names the error. */
const reasonIn = (text: string): string => /^\S*Error\b.*$/m.exec(text)?.[0] ?? '';

const exitError = (message: string): RcmBridgeError =>
  new RcmBridgeError('E_INTERACTIVE_EXIT', message || 'The Python host ended.', {
    hint: 'Check the interpreter with `rcm-bridge doctor`.',
  });

const pythonError = (error: { type: string; message: string; frames: PythonFrame[] }): PythonError =>
  new PythonError({
    code: 'E_PYTHON',
    message: error.message,
    hint: null,
    chain: [error],
    traceback: '',
    step: null,
    details: {},
  });

const numbers = new WeakMap<object, number>();
const numberOf = (value: unknown): number | undefined =>
  typeof value === 'object' && value !== null ? numbers.get(value) : undefined;

function referenceTo(channel: Channel, answered: unknown): PythonReference {
  const ref = Number(answered);
  const follow = async (request: Readonly<Record<string, unknown>>): Promise<PythonReference> =>
    referenceTo(channel, await channel.ask({ ...request, ref }));
  const encode = (value: unknown): unknown => encodeValue(value, numberOf);
  const reference: PythonReference = {
    get: name => follow({ op: 'get', name }),
    item: key => follow({ op: 'item', key: encode(key) }),
    call: (args = [], kwargs = {}) =>
      follow({
        op: 'call',
        args: args.map(encode),
        kwargs: Object.fromEntries(Object.entries(kwargs).map(([name, value]) => [name, encode(value)])),
      }),
    value: async () => decodeValue(await channel.ask({ op: 'value', ref })),
    text: async () => String(await channel.ask({ op: 'text', ref })),
    release: async () => void (await channel.ask({ op: 'release', ref })),
  };
  numbers.set(reference, ref);
  return reference;
}
