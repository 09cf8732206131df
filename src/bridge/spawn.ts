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

interface PythonStart {
  readonly python: string;
  /** py/launch.py and its arguments. */
  readonly script: readonly string[];
  readonly cwd: string;
  readonly env: Readonly<Record<string, string>>;
  /** JSON values; the pid of this process is added. */
  readonly line: Readonly<Record<string, unknown>>;
}

export interface SpawnedPython {
  readonly child: SidecarProcess;
  readonly exited: Promise<ProcessExit>;
  readonly failed: Promise<never>;
}

/** `spawnPython` for the sidecar. */
export const spawnSidecar = (
  options: Omit<PythonStart, 'script' | 'line'> & {
    readonly launchFile: string;
    readonly line: Omit<StartLine, 'ppid'>;
  },
): SpawnedPython => spawnPython({ ...options, script: [options.launchFile] });

/**
 * Starts `<python> -P -u -X faulthandler <script>` as leader of its own process group and writes the start line to its
 * stdin, which stays open: its end ends the process. A token is in no argument and no variable.
 *
 * @throws RcmBridgeError E_SIDECAR_START in a worker thread: the kernel kills the sidecar when the spawning thread ends.
 */
export function spawnPython(options: PythonStart): SpawnedPython {
  if (!isMainThread)
    throw new RcmBridgeError('E_SIDECAR_START', 'The Python sidecar can be started from the main thread only.');
  const child = spawn(options.python, ['-P', '-u', '-X', 'faulthandler', ...options.script], {
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
  child.stdin.write(`${JSON.stringify({ ...options.line, ppid: process.pid })}\n`);
  return { child, exited, failed };
}
