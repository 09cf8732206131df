/** A run in the process that owns it: starts the sidecar, follows it to its end, answers requests. */
import { join } from 'node:path';
import { type Hang, type SidecarExit, sidecarExitError } from '../bridge/sidecar.ts';
import type { RcmConfig } from '../config/types.ts';
import { AbortedError, isRcmBridgeError, PythonError, RcmBridgeError } from '../errors/index.ts';
import { openCsvSink } from '../logging/csv-sink.ts';
import { combineLoggers, createLogger, type Logger } from '../logging/logger.ts';
import type { EventBody, RequestBody, RequestType, RunStart } from '../protocol/messages.ts';
import { answerRequests } from './answers.ts';
import { findCheckpoint } from './checkpoints.ts';
import { deferred } from './deferred.ts';
import { writeEnvironment } from './environment.ts';
import { createEventRecorder, type EventRecorder } from './event-recorder.ts';
import { createEventStream } from './event-stream.ts';
import type { EndEvent } from './events.ts';
import { makeDirectory, openAppender, writeFileAtomic } from './files.ts';
import type { CancelOptions, RunHandle, RunResult } from './handle.ts';
import { openJournal } from './journal.ts';
import type { LaunchedSidecar, Launcher } from './launchers/launcher.ts';
import type { RunLock } from './lock.ts';
import { type EndState, isEndState, type RunErrorRecord, type RunRecord } from './record.ts';
import { describeRun, endedError, newestCheckpoint, resultFrom, runFailed, scorecardFor } from './result.ts';
import { stepName } from './run-id.ts';
import { keepState } from './run-state.ts';

export interface OwnedRunParts {
  readonly runDir: string;
  readonly record: RunRecord;
  readonly config: RcmConfig;
  readonly start: Extract<RunStart, { job: 'distill' | 'pretrain' }>;
  readonly lock: RunLock;
  readonly launch: Launcher;
  readonly python: string;
  readonly cwd: string;
  readonly env: Readonly<Record<string, string>>;
  readonly environment: Readonly<Record<string, unknown>>;
  readonly logger: Logger;
  readonly signal?: AbortSignal | undefined;
}

export interface OwnedRun {
  readonly handle: RunHandle;
  /**
   * Resolves when the job has passed its own checks (weights, teacher, GPU) and works; with the error when it was
   * refused by one of them, so that nothing was trained.
   */
  readonly accepted: Promise<RcmBridgeError | undefined>;
  /** Resolves when the run is over, its process gone and the lock released. Never rejects. */
  readonly over: Promise<void>;
}

const defaultDeadlineMs = 30_000;
/** After the deadline the sidecar gets this long to be heard, then it is killed. */
const killAfterMs = 1_000;
const shutdownGraceMs = 2_000;
/** A job that loads for longer than this counts as accepted: its events should be seen. */
const acceptedAfterMs = 60_000;

/** How the run ended, before it is written down. */
interface Outcome {
  readonly state: EndState;
  readonly error?: RcmBridgeError;
  readonly body?: EventBody<'end'>;
}

/** Takes over a run directory that has been made ready: run.json, config.json and the lock exist. */
export async function startOwnedRun(parts: OwnedRunParts): Promise<OwnedRun> {
  const { runDir, record: first, config } = parts;
  makeDirectory(join(runDir, 'logs'));
  const logFile = openAppender(join(runDir, 'logs', 'owner.log'));
  const level = config.logging.level;
  const ownLogger = await createLogger({ write: line => logFile.append(line) }, level);
  const logger = combineLoggers(quiet(ownLogger), parts.logger);
  const journal = openJournal(runDir, first.attempt);
  const stream = createEventStream(first.attempt);
  const sinks = config.logging.sinks.includes('csv') ? [openCsvSink(runDir)] : [];
  const outcome = deferred<Outcome>();
  const fail = (error: unknown): void => outcome.resolve({ state: 'failed', error: asError(error) });
  const state = keepState(runDir, first, fail);
  const recorder = createEventRecorder({ runDir, state, journal, stream, sinks, logger, level });
  const startUp = new AbortController();
  let sidecar: LaunchedSidecar | undefined;
  let aborted: AbortedError | undefined;
  let stopTimer: NodeJS.Timeout | undefined;
  const startedMs = Date.now();

  /** A handler that failed (a full disk) ends the run; it must never stop the reading of the socket. */
  const safely =
    <Argument>(handle: (argument: Argument) => Promise<void>) =>
    async (argument: Argument): Promise<void> => {
      try {
        await handle(argument);
      } catch (error) {
        fail(error);
      }
    };

  const work = async (): Promise<void> => {
    sidecar = await parts.launch({
      python: parts.python,
      cwd: parts.cwd,
      env: parts.env,
      logger,
      stderrFile: join(runDir, 'logs', 'sidecar.log'),
      signal: startUp.signal,
      onEvent: safely(recorder.onEvent),
      onBlob: safely(recorder.onBlob),
      onHang: hang => {
        logger.error({ ...hang }, 'the sidecar hangs');
        writeStackDump(runDir, hang);
      },
    });
    sidecar.exited.then(exit => {
      const isForced = isStopping() && exit.error?.code === 'E_SIDECAR_HANG';
      outcome.resolve(isForced ? { state: 'stopped' } : { state: 'failed', error: lostError(exit, runDir) });
    });
    await writeEnvironment(runDir, parts.environment, sidecar.ready);
    if (isStopping()) return outcome.resolve({ state: 'stopped' });
    await sidecar.request('run.start', parts.start);
    if (state.move('running')) recorder.record({ type: 'state', state: 'running', step: state.record.progress.step });
    const body = await recorder.ended;
    outcome.resolve({ state: body.state, body, ...(body.error ? { error: new PythonError(body.error) } : {}) });
  };

  const isStopping = (): boolean => state.record.state === 'stopping';

  const cancel = async ({
    checkpoint = config.checkpoints.onStop,
    deadlineMs = defaultDeadlineMs,
  }: CancelOptions = {}): Promise<{
    readonly state: EndState;
  }> => {
    if (state.move('stopping')) {
      safelyRecordState('stopping');
      if (sidecar) {
        sidecar.request('run.cancel', { checkpoint, deadlineMs: wholeMs(deadlineMs) }).catch(error => {
          logger.warn({ error: messageOf(error) }, 'the sidecar did not take the request to stop');
        });
        stopTimer = setTimeout(() => {
          logger.warn({ deadlineMs }, 'the sidecar did not stop in time and is killed');
          outcome.resolve({ state: 'stopped' });
        }, deadlineMs + killAfterMs);
      } else {
        outcome.resolve({ state: 'stopped' });
        startUp.abort();
      }
    }
    return { state: (await state.until(isEndState)) as EndState };
  };

  const safelyRecordState = (next: 'stopping'): void => {
    try {
      recorder.record({ type: 'state', state: next, step: state.record.progress.step });
    } catch (error) {
      fail(error);
    }
  };

  const onAbort = (): void => {
    aborted = new AbortedError(parts.signal?.reason);
    cancel().catch(() => undefined);
  };

  const running = async <Type extends RequestType>(
    type: Type,
    body: RequestBody<Type>,
  ): Promise<Readonly<Record<string, unknown>>> => {
    await state.until(now => now !== 'starting');
    if (isEndState(state.record.state) || isStopping() || !sidecar) throw endedError(state.record);
    return Promise.race([
      sidecar.request(type, body),
      outcome.promise.then(() => Promise.reject(endedError(state.record))),
    ]);
  };

  const result = deferred<{ readonly value: RunResult } | { readonly error: RcmBridgeError }>();

  const finish = async (): Promise<void> => {
    const ending = await conclude(await outcome.promise);
    clearTimeout(stopTimer);
    try {
      state.end(ending.event);
      recorder.record(ending.event);
    } catch (error) {
      // Nothing can be written any more: readers in this process still get the end.
      logger.error({ error: messageOf(error) }, 'the end of the run could not be written');
      stream.publish({ ...ending.event, attempt: first.attempt, time: Date.now() / 1000 });
    }
    stopAnswering();
    parts.signal?.removeEventListener('abort', onAbort);
    await endSidecar(ending.event.state);
    for (const file of [...sinks, journal, logFile]) file.close();
    parts.lock.release();
    result.resolve(ending.result());
  };

  const endSidecar = async (ended: EndState): Promise<void> => {
    startUp.abort();
    if (!sidecar) return;
    if (ended === 'failed') sidecar.kill();
    await sidecar.stop({ graceMs: shutdownGraceMs }).catch(error => {
      logger.warn({ error: messageOf(error) }, 'the sidecar had to be killed');
      sidecar?.kill();
    });
    await sidecar.exited.catch(() => undefined);
  };

  interface Ending {
    readonly event: Omit<EndEvent, 'seq' | 'attempt' | 'time'>;
    readonly result: () => { readonly value: RunResult } | { readonly error: RcmBridgeError };
  }

  /** Turns the outcome into the last event; a run has succeeded only when its report stands, too. */
  const conclude = async (reached: Outcome): Promise<Ending> => {
    try {
      if (reached.state === 'succeeded') return await concludeSuccess(reached);
    } catch (error) {
      return endingOf({ state: 'failed', error: asError(error), ...(reached.body ? { body: reached.body } : {}) }, 1);
    }
    return endingOf(reached, reached.state === 'stopped' ? 7 : (reached.error?.exitCode ?? 1));
  };

  const concludeSuccess = async (reached: Outcome): Promise<Ending> => {
    if (first.smoke) await findCheckpoint(runDir);
    const exitCode = scorecardFor(runDir, first)?.met === false ? 6 : 0;
    const { writeReport } = await import('../report/html.ts');
    await writeReport([runDir], state.ended({ state: 'succeeded', exitCode }));
    return endingOf(reached, exitCode);
  };

  const endingOf = ({ state: ended, error, body }: Outcome, exitCode: number): Ending => {
    const progress = state.record.progress;
    if (body)
      state.progress({ step: body.step, studentUpdates: body.studentUpdates, criticUpdates: body.criticUpdates });
    const event: Ending['event'] = {
      type: 'end',
      state: ended,
      step: body?.step ?? progress.step,
      studentUpdates: body?.studentUpdates ?? progress.studentUpdates,
      criticUpdates: body?.criticUpdates ?? progress.criticUpdates,
      exitCode: error?.exitCode ?? exitCode,
      checkpoint: body?.checkpoint ?? newestCheckpoint(runDir),
      exports: body?.exports ?? [],
      wallSeconds: (Date.now() - startedMs) / 1000,
      ...(error ? { error: errorRecord(error) } : {}),
    };
    if (error) logger.error({ ...error.toJSON() }, 'the run failed');
    const whole = { ...event, attempt: first.attempt, time: Date.now() / 1000 };
    return {
      event,
      result: () => {
        if (ended === 'failed') return { error: runFailed(first, runDir, event.error, error) };
        return aborted ? { error: aborted } : { value: resultFrom(runDir, state.record, whole) };
      },
    };
  };

  const handle: RunHandle = {
    id: first.id,
    dir: runDir,
    wasComplete: false,
    get state() {
      return state.record.state;
    },
    [Symbol.asyncIterator]: () => stream.read({}, true),
    events: options => stream.read(options, true),
    result: async () => {
      const ended = await result.promise;
      if ('error' in ended) throw ended.error;
      return ended.value;
    },
    cancel,
    pause: async () => {
      await running('run.pause', {});
      await reach('paused');
    },
    continue: async () => {
      await running('run.continue', {});
      await reach('running');
    },
    checkpoint: async () => {
      const { step, path } = await running('run.checkpoint', { reason: 'request' });
      return { step: Number(step), path: join(runDir, String(path)) };
    },
    sample: async ({ steps = 4, num = 10, seed = 0, label = null } = {}) => {
      await running('run.sample', { steps, num, seed, label });
    },
    describe: async () => describeRun(runDir, state.record),
  };

  const reach = async (wanted: 'paused' | 'running'): Promise<void> => {
    const reached = await state.until(now => now === wanted || now === 'stopping');
    if (reached !== wanted) throw endedError(state.record);
  };

  const stopAnswering = answerRequests({ runDir, handle, journal, onWriteError: fail });
  journal.write({ type: 'attempt', resumedFrom: parts.start.resumeFrom, pid: process.pid });
  recorder.record({ type: 'state', state: 'starting', step: first.progress.step });
  if (parts.signal?.aborted) onAbort();
  else parts.signal?.addEventListener('abort', onAbort, { once: true });
  work().catch(fail);
  const over = finish();
  return { handle, over, accepted: acceptance(recorder, outcome.promise, first, over) };
}

/** Errors of checks that come before anything is trained: usage, environment, weights. */
const refusals: ReadonlySet<number> = new Set([2, 3, 5]);

async function acceptance(
  recorder: EventRecorder,
  outcome: Promise<Outcome>,
  first: RunRecord,
  over: Promise<void>,
): Promise<RcmBridgeError | undefined> {
  let timer: NodeJS.Timeout | undefined;
  const patience = new Promise<undefined>(resolve => {
    timer = setTimeout(() => resolve(undefined), acceptedAfterMs);
  });
  const reached = await Promise.race([recorder.begun.then(() => undefined), outcome, patience]);
  clearTimeout(timer);
  if (reached?.state !== 'failed' || !reached.error || !refusals.has(reached.error.exitCode)) return undefined;
  if ((reached.body?.step ?? 0) > first.progress.step) return undefined;
  await over;
  return reached.error;
}

/** Ended by itself, or by the bridge, which then says why. */
function lostError(exit: SidecarExit, runDir: string): RcmBridgeError {
  const hint = `See ${join(runDir, 'logs', 'sidecar.log')}, then go on with \`rcm-bridge resume\`.`;
  const { code, message, details } = sidecarExitError(exit);
  const last = exit.error ? undefined : exit.stderrTail.trim().split('\n').at(-1)?.trim();
  return new RcmBridgeError(code, last ? `${message} Its last line: ${last}` : message, {
    hint,
    details,
    cause: exit.error,
  });
}

function writeStackDump(runDir: string, hang: Hang): void {
  makeDirectory(join(runDir, 'diagnostics'));
  writeFileAtomic(
    join(runDir, 'diagnostics', `hang-${stepName(hang.step)}.txt`),
    `${hang.kind} while ${hang.activity}\n\n${hang.stack}\n`,
  );
}

const errorRecord = ({ code, message, hint }: RcmBridgeError): RunErrorRecord => ({
  code,
  message,
  ...(hint === undefined ? {} : { hint }),
});

function asError(error: unknown): RcmBridgeError {
  if (isRcmBridgeError(error)) return error;
  return new RcmBridgeError('E_INTERNAL', messageOf(error), {
    cause: error,
    hint: 'See logs/owner.log in the run directory.',
  });
}

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

const wholeMs = (ms: number): number => Math.min(2 ** 31, Math.max(0, Math.round(ms)));

/** A log that cannot be written must not end a run: the journal reports a full disk. */
function quiet(logger: Logger): Logger {
  const guard =
    (level: keyof Logger) =>
    (fields: object, message?: string): void => {
      try {
        logger[level](fields, message);
      } catch {
        // Said by the journal.
      }
    };
  return { debug: guard('debug'), info: guard('info'), warn: guard('warn'), error: guard('error') };
}
