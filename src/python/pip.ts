import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { AbortedError, RcmBridgeError } from '../errors/index.ts';
import type { Environment } from './home.ts';

/** Words that start pip, such as `[python, '-I', '-m', 'pip']`. */
export type PipCommand = readonly [string, ...string[]];

export interface CommandOptions {
  readonly env: Environment;
  readonly onLine?: ((line: string) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

const keptLines = 40;

/** Variables that would make pip write somewhere else, or Python read something else. */
const confusing = [
  'PYTHONHOME',
  'PYTHONPATH',
  'PIP_TARGET',
  'PIP_PREFIX',
  'PIP_ROOT',
  'PIP_USER',
  'PIP_REQUIRE_HASHES',
  'PIP_NO_DEPS',
  'PIP_PYTHON',
];

/** Runs a program to its end; its lines go to `onLine`. Resolves with the exit code and the last lines. */
export async function runCommand(
  command: PipCommand,
  options: CommandOptions,
): Promise<{ readonly code: number; readonly lines: readonly string[] }> {
  const [program, ...words] = command;
  const env = Object.fromEntries(Object.entries(options.env).filter(([name]) => !confusing.includes(name)));
  const child = spawn(program, words, {
    // A group of its own, so that an abort also ends what pip started.
    detached: process.platform !== 'win32',
    stdio: ['ignore', 'pipe', 'pipe'],
    env: {
      ...env,
      PIP_DISABLE_PIP_VERSION_CHECK: '1',
      PIP_NO_INPUT: '1',
      PYTHONUNBUFFERED: '1',
      PYTHONDONTWRITEBYTECODE: '',
    },
  });
  const lines: string[] = [];
  for (const stream of [child.stdout, child.stderr]) {
    createInterface({ input: stream }).on('line', line => {
      lines.push(line);
      if (lines.length > keptLines) lines.shift();
      options.onLine?.(line);
    });
  }
  const stop = (): void => endGroup(child.pid);
  options.signal?.addEventListener('abort', stop, { once: true });
  if (options.signal?.aborted) stop();
  try {
    const code = await new Promise<number>(settle => {
      child.once('error', error => {
        lines.push(error.message);
        settle(127);
      });
      child.once('close', exit => settle(exit ?? 1));
    });
    if (options.signal?.aborted) throw new AbortedError(options.signal.reason);
    return { code, lines };
  } finally {
    options.signal?.removeEventListener('abort', stop);
  }
}

function endGroup(pid: number | undefined): void {
  if (pid === undefined) return;
  try {
    process.kill(process.platform === 'win32' ? pid : -pid, 'SIGKILL');
  } catch {
    // It has ended by itself.
  }
}

/** @throws RcmBridgeError E_DISK_FULL or E_PYTHON_SETUP with what pip said. */
export async function runPip(pip: PipCommand, words: readonly string[], options: CommandOptions): Promise<void> {
  const { code, lines } = await runCommand([...pip, ...words], options);
  if (code === 0) return;
  const said = lines.findLast(line => /^ERROR|error:/i.test(line)) ?? lines.at(-1) ?? 'it said nothing';
  if (lines.some(line => /No space left on device|Errno 28|Disk quota exceeded/i.test(line))) {
    throw new RcmBridgeError('E_DISK_FULL', `pip ran out of disk space: ${said}.`, {
      hint: 'Free some space, or set RCM_BRIDGE_HOME and TMPDIR to a larger disk; setup goes on where it stopped.',
    });
  }
  throw new RcmBridgeError('E_PYTHON_SETUP', `pip ended with code ${code}: ${said}`, {
    hint: 'Check the network and the configuration of pip, then run the command again; it goes on where it stopped.',
    details: { lines },
  });
}
