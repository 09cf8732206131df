/** The process that starts this machine's ranks of a run that another machine leads: `py/launch.py --node`. */
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { z } from 'zod';
import { sidecarEnvironment } from '../../bridge/environment.ts';
import { type ProcessExit, spawnPython } from '../../bridge/spawn.ts';
import { signalGroup } from '../../bridge/terminate.ts';
import type { RcmConfig } from '../../config/types.ts';
import { PythonError, RcmBridgeError } from '../../errors/index.ts';
import { packageRoot } from '../../package-root.ts';
import { errorBody } from '../../protocol/messages.ts';
import { deferred } from '../deferred.ts';
import type { Rendezvous } from './placement.ts';

const started = z.object({
  type: z.literal('started'),
  runId: z.string(),
  runDir: z.string(),
  attempt: z.number(),
});
const over = z.object({ type: z.literal('over'), error: errorBody.nullable() });
const said = z.discriminatedUnion('type', [started, over]);

/** The run it has joined, as the machine that leads has named it. */
export type JoinedRun = z.infer<typeof started>;

export interface NodeProcess {
  /** All machines are here and the ranks run. Rejects when it does not come to that. */
  readonly joined: Promise<JoinedRun>;
  /** The job is over and the ranks of this machine are gone; the error is why it failed. Never rejects. */
  readonly over: Promise<RcmBridgeError | undefined>;
  kill(): void;
}

export interface NodeProcessOptions {
  readonly python: string;
  readonly cwd: string;
  readonly env: Readonly<Record<string, string>>;
  readonly node: number;
  readonly rendezvous: Rendezvous;
  readonly config: RcmConfig;
}

const tailBytes = 4_096;

export function startNodeProcess(options: NodeProcessOptions): NodeProcess {
  const { python, cwd, env, node, rendezvous, config } = options;
  const { child, exited, failed } = spawnPython({
    python,
    script: [join(packageRoot(), 'py', 'launch.py'), '--node'],
    cwd,
    env: sidecarEnvironment(process.env, env),
    line: { node, ...rendezvous, config },
  });
  const joined = deferred<JoinedRun>();
  const ended = deferred<RcmBridgeError | undefined>();
  let tail = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    tail = (tail + text).slice(-tailBytes);
  });
  const lines = createInterface({ input: child.stdout });
  lines.on('line', line => {
    const word = said.parse(JSON.parse(line));
    if (word.type === 'started') joined.resolve(word);
    else ended.resolve(word.error === null ? undefined : new PythonError(word.error));
  });
  failed.catch(error => ended.resolve(error));
  // All it has said is here when its output has ended, too.
  const closed = new Promise<void>(resolve => lines.once('close', resolve));
  Promise.all([exited, closed]).then(([exit]) => ended.resolve(lostNode(exit, tail)));
  const refused = ended.promise.then(error => Promise.reject(error ?? unjoined()));
  refused.catch(() => undefined);
  return {
    joined: Promise.race([joined.promise, refused]),
    over: ended.promise,
    kill: () => void (child.pid !== undefined && signalGroup(child.pid, 'SIGKILL')),
  };
}

function lostNode({ code, signal }: ProcessExit, tail: string): RcmBridgeError {
  const how = signal === null ? `with code ${code}` : `by signal ${signal}`;
  const last = tail.trim().split('\n').at(-1)?.trim();
  const words = last ? ` Its last line: ${last}` : '';
  return new RcmBridgeError(
    'E_SIDECAR_EXIT',
    `The process that starts the ranks of this machine ended ${how}.${words}`,
    {
      hint: 'The run has ended with it; go on with `rcm-bridge resume` on all machines.',
    },
  );
}

const unjoined = (): RcmBridgeError =>
  new RcmBridgeError('E_RENDEZVOUS', 'The run ended before this machine could take part.', {
    hint: 'Machine 0 says why; start the same command again on all of them.',
  });
