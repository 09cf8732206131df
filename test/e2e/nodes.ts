/** A run on two machines, both of them this one, for the short and the long tests. */
import type { ChildProcess } from 'node:child_process';
import { createServer } from 'node:net';
import { type CliResult, quickRun, runCli } from '../cli.ts';

export const nodeWords = (steps: number, everySteps: number): readonly string[] => [
  ...['distill', ...quickRun(steps), '--set', 'compute.device=cpu'],
  ...['--set', `checkpoints.everySteps=${everySteps}`],
];

export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  await new Promise(resolve => server.close(resolve));
  return typeof address === 'object' && address !== null ? address.port : 0;
}

export interface TwoNodes {
  /** By machine. */
  readonly results: readonly [CliResult, CliResult];
  /** From `onStep` to the end of each. */
  readonly seconds: readonly [number, number];
}

/** What happens to the two command lines once machine 0 has reported the metrics of that step. */
export interface AtStep {
  readonly step: number;
  readonly act: (nodes: readonly [ChildProcess, ChildProcess]) => void;
}

/** Types the same command on both machines; the second one starts first, which must not matter. */
export async function onTwoNodes(cwd: string, words: readonly string[], at?: AtStep): Promise<TwoNodes> {
  const rdzv = `127.0.0.1:${await freePort()}`;
  const children: ChildProcess[] = [];
  let actedMs = 0;
  const begin = async (node: number): Promise<readonly [CliResult, number]> => {
    const more = ['--rdzv', rdzv, '--node-rank', String(node), '--format', 'ndjson'];
    const result = await runCli([...words, ...more], {
      cwd,
      timeoutMs: 120_000,
      onSpawn: child => {
        children[node] = child;
        if (node === 0 && at) whenAtStep(child, at.step, () => act());
      },
    });
    return [result, (performance.now() - actedMs) / 1000];
  };
  const act = (): void => {
    const [first, second] = children;
    if (!first || !second) return;
    actedMs = performance.now();
    at?.act([first, second]);
  };
  const second = begin(1);
  const [[result0, seconds0], [result1, seconds1]] = await Promise.all([begin(0), second]);
  return { results: [result0, result1], seconds: [seconds0, seconds1] };
}

function whenAtStep(child: ChildProcess, step: number, act: () => void): void {
  let text = '';
  let done = false;
  child.stdout?.on('data', chunk => {
    text += String(chunk);
    const reached = text
      .split('\n')
      .some(line => line.includes('"type":"metric"') && Number(/"step":(\d+)/.exec(line)?.[1]) >= step);
    if (done || !reached) return;
    done = true;
    act();
  });
}
