/** Starts the owner of a run as a process of its own, in a session of its own, and waits until it has accepted the run. */
import { type ChildProcess, spawn } from 'node:child_process';
import fs from 'node:fs';
import { join } from 'node:path';
import { AbortedError, RcmBridgeError, throwIfAborted } from '../../errors/index.ts';
import { packageRoot } from '../../package-root.ts';
import { anySignal, type BridgeContext, type Interpreter, sidecarVariables } from '../context.ts';
import { makeDirectory, openForAppending } from '../files.ts';
import type { RunHandle } from '../handle.ts';
import type { RunOptions } from '../options.ts';
import { openRemoteRun } from '../remote-run.ts';
import type { OwnerMessage, OwnerOrder, OwnerTask, StarterMessage } from './messages.ts';
import { removeUnused } from './remove-unused.ts';
import { receivedError } from './sent-error.ts';

/** Node runs it as it is, so it is the compiled one also where the rest is TypeScript (tests). */
const entryFile = (): string => join(packageRoot(), 'dist', 'runs', 'detached', 'owner.js');

export interface DetachedStart {
  readonly task: OwnerTask;
  /** Absolute. */
  readonly runDir: string;
  readonly python: Interpreter;
  readonly options: Pick<RunOptions, 'signal' | 'onCreated'>;
}

/**
 * Resolves with a handle on the run of the other process, which from then on lives without this one.
 * @throws what the owner throws before it accepts the run, E_OWNER_GONE, E_ABORTED; then no process and no folder is left
 */
export async function startDetached(context: BridgeContext, start: DetachedStart): Promise<RunHandle> {
  const { runDir, options } = start;
  const signal = anySignal(context.options.signal, options.signal);
  throwIfAborted(signal);
  const child = spawnOwner(context, runDir);
  const ended = new Promise<void>(resolve => {
    child.once('exit', () => resolve());
    child.once('error', () => resolve());
  });
  const open = (wasComplete: boolean): RunHandle =>
    openRemoteRun(runDir, { signal: context.options.signal, wasComplete });
  try {
    const { wasComplete } = await acceptance(child, orderFrom(context, start), {
      signal,
      onNotice: context.notice,
      onCreated: () => options.onCreated?.(open(false)),
    });
    return open(wasComplete);
  } catch (error) {
    await ended;
    removeUnused(runDir);
    throw signal?.aborted ? new AbortedError(signal.reason) : error;
  } finally {
    if (child.connected) child.disconnect();
    child.unref();
  }
}

function spawnOwner(context: BridgeContext, runDir: string): ChildProcess {
  const log = openLog(runDir);
  try {
    return spawn(process.execPath, [entryFile()], {
      cwd: context.cwd,
      env: { ...process.env, ...sidecarVariables(context.env) },
      detached: true,
      windowsHide: true,
      stdio: ['ignore', log, log, 'ipc'],
      serialization: 'advanced',
    });
  } finally {
    fs.closeSync(log);
  }
}

/** What Node itself prints lands beside the owner's own log. @throws E_DISK_FULL */
function openLog(runDir: string): number {
  try {
    makeDirectory(join(runDir, 'logs'));
    return openForAppending(logFile(runDir));
  } catch (error) {
    removeUnused(runDir);
    throw error;
  }
}

const logFile = (runDir: string): string => join(runDir, 'logs', 'owner.log');

function orderFrom({ runsDir, cwd, commandLine }: BridgeContext, { task, runDir, python }: DetachedStart): OwnerOrder {
  const { executable, version, packages } = python;
  return { task, runDir, runsDir, cwd, commandLine, python: { executable, version, packages } };
}

interface Waiting {
  readonly signal: AbortSignal | undefined;
  readonly onNotice: (text: string) => void;
  readonly onCreated: () => void;
}

type Accepted = Extract<OwnerMessage, { type: 'accepted' }>;

/** Gives the order and resolves with the owner's last word. */
function acceptance(child: ChildProcess, order: OwnerOrder, waiting: Waiting): Promise<Accepted> {
  const { signal, onNotice, onCreated } = waiting;
  // An owner that has ended takes no messages: its exit says so.
  const tell = (message: StarterMessage): void => {
    if (child.connected) child.send(message, () => undefined);
  };
  const onAbort = (): void => tell({ type: 'abort' });
  return new Promise<Accepted>((resolve, reject) => {
    child.once('error', error => reject(lostOwner(order.runDir, error.message)));
    // `close`, not `exit`: only then all it has sent is here.
    child.once('close', (code, end) => reject(lostOwner(order.runDir, `it ended with ${end ?? `code ${code}`}`)));
    const hear = (message: OwnerMessage): void => {
      if (message.type === 'notice') onNotice(message.text);
      else if (message.type === 'created') onCreated();
      else if (message.type === 'accepted') resolve(message);
      else reject(receivedError(message.error));
    };
    child.on('message', (message: OwnerMessage) => {
      try {
        hear(message);
      } catch (error) {
        // A caller's function has thrown: it gets its own error, and no run.
        tell({ type: 'abort' });
        reject(error);
      }
    });
    signal?.addEventListener('abort', onAbort, { once: true });
    tell({ type: 'order', order });
  }).finally(() => signal?.removeEventListener('abort', onAbort));
}

function lostOwner(runDir: string, how: string): RcmBridgeError {
  const last = lastLine(logFile(runDir));
  const said = last === undefined ? '' : ` Its last line: ${last}`;
  return new RcmBridgeError('E_OWNER_GONE', `The process that was to own the run could not start: ${how}.${said}`, {
    hint: 'Start the run without --detach to see more.',
    details: { runDir },
  });
}

function lastLine(path: string): string | undefined {
  try {
    return fs.readFileSync(path, 'utf8').trim().split('\n').at(-1)?.trim() || undefined;
  } catch {
    return undefined;
  }
}
