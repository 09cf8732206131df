/**
 * Entry of a process that owns one run: takes its order from the process that started it, says whether the run is
 * accepted, and lives as long as the run. Started by start-detached.ts only.
 */
import { silentLogger } from '../../logging/logger.ts';
import type { BridgeContext } from '../context.ts';
import type { RunHandle } from '../handle.ts';
import { localLauncher } from '../launchers/local.ts';
import { readRecord } from '../record.ts';
import { resumeRun } from '../resume-run.ts';
import { ownPrepared } from '../start-run.ts';
import { stopOnSignals } from '../stop-signals.ts';
import type { OwnerMessage, OwnerOrder, StarterMessage } from './messages.ts';
import { removeUnused } from './remove-unused.ts';
import { sentError } from './sent-error.ts';

const graceMs = 30_000;
const usageExitCode = 2;

if (process.send === undefined) {
  process.stderr.write('This is a part of rcm-bridge and no command; use `rcm-bridge distill --detach`.\n');
  process.exitCode = usageExitCode;
} else {
  waitForOrder();
}

function waitForOrder(): void {
  const withdrawn = new AbortController();
  const withdraw = (): void => withdrawn.abort(new Error('The process that started the run took it back.'));
  const onMessage = (message: StarterMessage): void => {
    if (message.type === 'abort') withdraw();
    else void serve(message.order, withdrawn.signal, release);
  };
  const release = (): void => {
    process.off('disconnect', withdraw);
    process.off('message', onMessage);
  };
  process.on('disconnect', withdraw);
  process.on('message', onMessage);
}

/** `release` cuts the tie to the starter: what it does from then on does not touch the run. */
async function serve(order: OwnerOrder, signal: AbortSignal, release: () => void): Promise<void> {
  const onCreated = (run: RunHandle): void => {
    stopOnSignals(run, { graceMs });
    void tell({ type: 'created' });
  };
  let run: RunHandle;
  try {
    run = await begin(order, signal, onCreated);
  } catch (error) {
    // The starter does so, too, but it may be gone.
    removeUnused(order.runDir);
    await tell({ type: 'refused', error: sentError(error) });
    process.exit(1);
  }
  release();
  await tell({ type: 'accepted', wasComplete: run.wasComplete });
  if (process.connected) process.disconnect();
  if (run.wasComplete) return;
  await run.result().catch(() => undefined);
  process.exit(readRecord(order.runDir)?.exitCode ?? 0);
}

function begin(order: OwnerOrder, signal: AbortSignal, onCreated: (run: RunHandle) => void): Promise<RunHandle> {
  const { task, runDir } = order;
  const context = contextFrom(order);
  if (task.kind === 'start') {
    return ownPrepared(context, task.prepared, { id: task.id, runDir }, { smoke: task.smoke, signal, onCreated });
  }
  const { kind: _, ...options } = task;
  return resumeRun(context, runDir, { ...options, signal, onCreated });
}

function contextFrom({ runsDir, cwd, python, commandLine }: OwnerOrder): BridgeContext {
  return {
    cwd,
    env: process.env,
    runsDir,
    logger: silentLogger,
    options: {},
    launch: localLauncher(),
    findPython: async () => python,
    owned: new Set(),
    notice: text => void tell({ type: 'notice', text }),
    commandLine,
  };
}

/** Resolves when the message is on its way; a starter that is gone hears nothing. */
function tell(message: OwnerMessage): Promise<void> {
  return new Promise(resolve => {
    if (!process.connected) return resolve();
    process.send?.(message, undefined, undefined, () => resolve());
  });
}
