import { join } from 'node:path';
import { afterAll, beforeAll, it } from 'vitest';
import { temporaryFolder } from '../cli.ts';
import { onlyRun } from '../run-files.ts';
import { everybody, expectStopped, longRun, signalledRun } from './many-processes.ts';

let folder: Awaited<ReturnType<typeof temporaryFolder>>;

beforeAll(async () => {
  folder = await temporaryFolder();
});
afterAll(() => folder.remove());

it('a run on two processes ends with a checkpoint at SIGUSR1 to all of them, and when Node alone hears it', async () => {
  const first = await signalledRun(folder.path, longRun, everybody('SIGUSR1'));
  const runDir = onlyRun(join(folder.path, 'runs'));
  expectStopped(runDir, first, 1);
  expectStopped(runDir, await signalledRun(folder.path, ['resume', 'last'], node => node.kill('SIGUSR1')), 2);
}, 400_000);
