/** A run in the process that owns it: starts the sidecar, follows it to its end, answers requests. */
import { join } from 'node:path';
import type { Sidecar, SidecarExit } from '../bridge/sidecar.ts';
import type { RcmConfig } from '../config/types.ts';
import { AbortedError, PythonError, type RcmBridgeError } from '../errors/index.ts';
import type { Logger } from '../logging/logger.ts';
import type { RequestBody, RequestType, RunStart } from '../protocol/messages.ts';
import { answerRequests } from './answers.ts';
import { type Conclusion, conclude, type Outcome, type Settled, settle } from './conclude.ts';
import { deferred } from './deferred.ts';
import { writeEnvironment } from './environment.ts';
import { createEventRecorder, type EventRecorder } from './event-recorder.ts';
import { createEventStream, type EventStream } from './event-stream.ts';
import type { CancelOptions, RunHandle } from './handle.ts';
import type { LaunchedSidecar, Launcher } from './launchers/launcher.ts';
import type { RunLock } from './lock.ts';
import { type EndState, isEndState, type Job, type RunRecord } from './record.ts';
import { describeRun, endedError } from './result.ts';
import { asError, lostError, messageOf, writeStackDump } from './run-errors.ts';
import { openRunFiles, type RunFiles } from './run-files.ts';
import { keepState, type RunStateKeeper } from './run-state.ts';

export interface OwnedRunParts {
  readonly runDir: string;
  readonly record: RunRecord;
  readonly config: RcmConfig;
  readonly start: Extract<RunStart, { job: Job }>;
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
   * Resolves when the job has passed its own checks (weights, teacher, GPU) and works; with the error when one of them
   * refused it, so that nothing was trained.
   */
  readonly accepted: Promise<RcmBridgeError | undefined>;
  /** Resolves when the run is over, its process gone and the lock released. Never rejects. */
  readonly over: Promise<void>;
}

const defaultDeadlineMs = 30_000;
/** The bridge kills the sidecar at the deadline of a cancel; this is for one that even that does not end. */
const killAfterMs = 7_000;
const shutdownGraceMs = 2_000;
/** A job that loads for longer than this counts as accepted: its events should be seen. */
const acceptedAfterMs = 60_000;

/** Takes over a run directory that has been made ready: run.json, config.json and the lock exist. */
export async function startOwnedRun(parts: OwnedRunParts): Promise<OwnedRun> {
  const { runDir, record, config, logger } = parts;
  const files = await openRunFiles(runDir, record.attempt, config.logging, logger);
  return new Owner(parts, files).begin();
}

class Owner {
  readonly #parts: OwnedRunParts;
  readonly #files: RunFiles;
  readonly #stream: EventStream;
  readonly #state: RunStateKeeper;
  readonly #recorder: EventRecorder;
  readonly #outcome = deferred<Outcome>();
  readonly #settled = deferred<Settled>();
  readonly #startUp = new AbortController();
  readonly #startedMs = Date.now();
  #sidecar: LaunchedSidecar | undefined;
  #aborted: AbortedError | undefined;
  #stopTimer: NodeJS.Timeout | undefined;

  constructor(parts: OwnedRunParts, files: RunFiles) {
    const { runDir, record } = parts;
    this.#parts = parts;
    this.#files = files;
    this.#stream = createEventStream(record.attempt);
    this.#state = keepState(runDir, record, error => this.#fail(error));
    this.#recorder = createEventRecorder({ ...files, runDir, state: this.#state, stream: this.#stream });
  }

  begin(): OwnedRun {
    const { runDir, record, start, signal } = this.#parts;
    const { journal } = this.#files;
    const handle = this.#handle();
    const stopAnswering = answerRequests({ runDir, handle, journal, onWriteError: error => this.#fail(error) });
    this.#attempt(() => {
      journal.write({ type: 'attempt', resumedFrom: start.resumeFrom, pid: process.pid });
      this.#recorder.record({ type: 'state', state: 'starting', step: record.progress.step });
    });
    const onAbort = (): void => this.#abort();
    if (signal?.aborted) onAbort();
    else signal?.addEventListener('abort', onAbort, { once: true });
    this.#work().catch(error => this.#fail(error));
    const over = this.#finish(() => {
      stopAnswering();
      signal?.removeEventListener('abort', onAbort);
    });
    return { handle, over, accepted: this.#acceptance(over) };
  }

  #fail(error: unknown): void {
    this.#outcome.resolve({ state: 'failed', error: asError(error) });
  }

  /** What cannot be written (a full disk) ends the run; it must never stop the reading of a socket. */
  #attempt(write: () => void): void {
    try {
      write();
    } catch (error) {
      this.#fail(error);
    }
  }

  async #work(): Promise<void> {
    const { start, environment, runDir } = this.#parts;
    const sidecar = await this.#launch();
    this.#sidecar = sidecar;
    sidecar.exited.then(exit => this.#onExit(exit));
    await writeEnvironment(runDir, environment, sidecar.ready);
    if (this.#isStopping) return this.#outcome.resolve({ state: 'stopped' });
    await sidecar.request('run.start', start);
    if (this.#state.move('running')) this.#recordState('running');
    const body = await this.#recorder.ended;
    this.#outcome.resolve({ state: body.state, body, ...(body.error ? { error: new PythonError(body.error) } : {}) });
  }

  #launch(): Promise<LaunchedSidecar> {
    const { launch, python, cwd, env, runDir } = this.#parts;
    const { logger, sidecarLog: stderrFile } = this.#files;
    const { onEvent, onBlob } = this.#recorder;
    return launch({
      python,
      cwd,
      env,
      logger,
      stderrFile,
      signal: this.#startUp.signal,
      onEvent: event => onEvent(event).catch(error => this.#fail(error)),
      onBlob: blob => onBlob(blob).catch(error => this.#fail(error)),
      onHang: hang => {
        logger.error({ ...hang }, 'the sidecar hangs');
        this.#attempt(() => writeStackDump(runDir, hang));
      },
    });
  }

  #onExit(exit: SidecarExit): void {
    const wasForced = this.#isStopping && exit.error?.code === 'E_SIDECAR_HANG';
    if (wasForced) this.#outcome.resolve({ state: 'stopped' });
    else this.#outcome.resolve({ state: 'failed', error: lostError(exit, this.#parts.runDir) });
  }

  get #isStopping(): boolean {
    return this.#state.record.state === 'stopping';
  }

  #recordState(state: 'running' | 'stopping'): void {
    this.#recorder.record({ type: 'state', state, step: this.#state.record.progress.step });
  }

  // Requests

  async #cancel(options: CancelOptions): Promise<{ readonly state: EndState }> {
    this.#attempt(() => {
      if (!this.#state.move('stopping')) return;
      this.#recordState('stopping');
      this.#stop(options);
    });
    return { state: (await this.#state.until(isEndState)) as EndState };
  }

  #stop({ checkpoint = this.#parts.config.checkpoints.onStop, deadlineMs = defaultDeadlineMs }: CancelOptions): void {
    const { logger } = this.#files;
    if (!this.#sidecar) {
      this.#outcome.resolve({ state: 'stopped' });
      return;
    }
    const wholeMs = Math.min(2 ** 31, Math.max(0, Math.round(deadlineMs)));
    this.#sidecar.request('run.cancel', { checkpoint, deadlineMs: wholeMs }).catch(error => {
      logger.warn({ error: messageOf(error) }, 'the sidecar did not take the request to stop');
    });
    this.#stopTimer = setTimeout(() => {
      logger.warn({ deadlineMs }, 'the sidecar did not stop in time');
      this.#outcome.resolve({ state: 'stopped' });
    }, deadlineMs + killAfterMs);
  }

  #abort(): void {
    this.#aborted = new AbortedError(this.#parts.signal?.reason);
    void this.#cancel({});
  }

  /** Asks the sidecar while the run is under way. */
  async #ask<Type extends RequestType>(type: Type, body: RequestBody<Type>): ReturnType<Sidecar['request']> {
    const state = await this.#state.until(now => now !== 'starting');
    if (isEndState(state) || state === 'stopping' || !this.#sidecar) throw endedError(this.#state.record);
    const over = this.#outcome.promise.then(() => Promise.reject(endedError(this.#state.record)));
    return Promise.race([this.#sidecar.request(type, body), over]);
  }

  async #reach(wanted: 'paused' | 'running'): Promise<void> {
    const reached = await this.#state.until(now => now === wanted || now === 'stopping');
    if (reached !== wanted) throw endedError(this.#state.record);
  }

  #handle(): RunHandle {
    const { record, runDir } = this.#parts;
    const state = this.#state;
    return {
      id: record.id,
      dir: runDir,
      wasComplete: false,
      node: 0,
      get state() {
        return state.record.state;
      },
      [Symbol.asyncIterator]: () => this.#stream.read({}, true),
      events: options => this.#stream.read(options, true),
      result: async () => {
        const settled = await this.#settled.promise;
        if ('error' in settled) throw settled.error;
        return settled.value;
      },
      cancel: (options = {}) => this.#cancel(options),
      pause: async () => {
        await this.#ask('run.pause', {});
        await this.#reach('paused');
      },
      continue: async () => {
        await this.#ask('run.continue', {});
        await this.#reach('running');
      },
      checkpoint: async () => {
        const { step, path } = await this.#ask('run.checkpoint', { reason: 'request' });
        return { step: Number(step), path: join(runDir, String(path)) };
      },
      sample: async ({ steps = 4, num = 10, seed = 0, label = null } = {}) => {
        await this.#ask('run.sample', { steps, num, seed, label });
      },
      describe: async () => describeRun(runDir, state.record),
    };
  }

  // The end

  async #finish(stopListening: () => void): Promise<void> {
    const { runDir, record, lock } = this.#parts;
    const { logger } = this.#files;
    const conclusion = await conclude(runDir, this.#state, this.#startedMs, await this.#outcome.promise);
    clearTimeout(this.#stopTimer);
    if (conclusion.error) logger.error({ ...conclusion.error.toJSON() }, 'the run failed');
    this.#writeEnd(conclusion);
    stopListening();
    await this.#endSidecar(conclusion.event.state);
    this.#files.close();
    lock.release();
    this.#settled.resolve(settle(runDir, record, conclusion, this.#aborted));
  }

  /** Journal first: whoever sees the end in run.json finds the `end` event. */
  #writeEnd({ event }: Conclusion): void {
    const { logger } = this.#files;
    try {
      this.#recorder.record(event);
    } catch (error) {
      // Nothing can be written any more: readers in this process still get the end.
      logger.error({ error: messageOf(error) }, 'the end of the run could not be journalled');
      this.#stream.publish({ ...event, attempt: this.#parts.record.attempt, time: Date.now() / 1000 });
    }
    try {
      this.#state.end(event);
    } catch (error) {
      logger.error({ error: messageOf(error) }, 'the end of the run could not be written into run.json');
    }
  }

  async #endSidecar(ended: EndState): Promise<void> {
    this.#startUp.abort();
    const sidecar = this.#sidecar;
    if (!sidecar) return;
    if (ended === 'failed') sidecar.kill();
    await sidecar.stop({ graceMs: shutdownGraceMs }).catch(error => {
      this.#files.logger.warn({ error: messageOf(error) }, 'the sidecar had to be killed');
      sidecar.kill();
    });
    await sidecar.exited;
  }

  async #acceptance(over: Promise<void>): Promise<RcmBridgeError | undefined> {
    let timer: NodeJS.Timeout | undefined;
    const patience = new Promise<undefined>(resolve => {
      timer = setTimeout(() => resolve(undefined), acceptedAfterMs);
    });
    const begun = this.#recorder.begun.then(() => undefined);
    const reached = await Promise.race([begun, this.#outcome.promise, patience]);
    clearTimeout(timer);
    if (!reached || !isRefusal(reached, this.#parts.record.progress.step)) return undefined;
    await over;
    return reached.error;
  }
}

/** Exit codes of checks that come before anything is trained: usage, environment, weights. */
const refusals: ReadonlySet<number> = new Set([2, 3, 5]);

const isRefusal = ({ state, error, body }: Outcome, firstStep: number): boolean =>
  state === 'failed' && error !== undefined && refusals.has(error.exitCode) && (body?.step ?? 0) <= firstStep;
