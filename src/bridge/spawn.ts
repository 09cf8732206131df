import { type ChildProcessByStdio, spawn } from 'node:child_process';
import type { Readable, Writable } from 'node:stream';
import { isMainThread } from 'node:worker_threads';
import { RcmBridgeError } from '../errors/index.ts';
import type { StartLine } from '../protocol/index.ts';

export type SidecarProcess = ChildProcessByStdio<Writable, Readable, Readable>;

/** How a process ended. */
export interface ProcessExit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

/**
 * Starts `<python> -P -u -X faulthandler <launchFile>` as leader of its own process group and writes the start line to
 * its stdin, which stays open: its end ends the sidecar. The token is in no argument and no variable.
 *
 * @throws RcmBridgeError E_SIDECAR_START in a worker thread: the kernel kills the sidecar when the spawning thread ends.
 */
export function spawnSidecar(options: {
  readonly python: string;
  readonly launchFile: string;
  readonly cwd: string;
  readonly env: Readonly<Record<string, string>>;
  readonly line: Omit<StartLine, 'ppid'>;
}): { readonly child: SidecarProcess; readonly exited: Promise<ProcessExit>; readonly failed: Promise<never> } {
  if (!isMainThread)
    throw new RcmBridgeError('E_SIDECAR_START', 'The Python sidecar can be started from the main thread only.');
  const child = spawn(options.python, ['-P', '-u', '-X', 'faulthandler', options.launchFile], {
    cwd: options.cwd,
    env: { ...options.env },
    stdio: ['pipe', 'pipe', 'pipe'],
    detached: true,
    windowsHide: true,
  });
  const exited = new Promise<ProcessExit>(resolve => {
    child.once('exit', (code, signal) => resolve({ code, signal }));
    child.once('error', () => {
      if (child.pid === undefined) resolve({ code: null, signal: null });
    });
  });
  const failed = new Promise<never>((_, reject) => {
    child.once('error', error =>
      reject(new RcmBridgeError('E_SIDECAR_START', `Python cannot be started: ${error.message}.`, { cause: error })),
    );
  });
  failed.catch(() => undefined);
  // A child that dies early closes the pipe; its exit event says so, the write error adds nothing.
  child.stdin.on('error', () => undefined);
  child.stdin.write(`${JSON.stringify({ ...options.line, ppid: process.pid } satisfies StartLine)}\n`);
  return { child, exited, failed };
}
