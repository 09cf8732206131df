import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { AbortedError, PythonError, RcmBridgeError } from '../errors/index.ts';
import { packageRoot } from '../package-root.ts';
import {
  blobs,
  controlToNode,
  controlToPython,
  type ErrorBody,
  frameBytes,
  type Heartbeat,
  type Hello,
  pack,
  protocolRange,
  type Ready,
  type RequestBody,
  type RequestType,
  type SidecarEvent,
} from '../protocol/index.ts';
import { createEndpoint, type Endpoint } from './endpoint.ts';
import { sidecarEnvironment } from './environment.ts';
import { createEventStream, type EventStream, type SidecarBlob } from './event-stream.ts';
import { acceptHello, protocolSchemaHash } from './handshake.ts';
import { decodeMessage, protocolError } from './message.ts';
import { createRequests, type PendingRequests, type RequestOptions, type ResponseValue } from './requests.ts';
import { bindSockets, type Sockets } from './sockets.ts';
import { type ProcessExit, type SidecarProcess, spawnSidecar } from './spawn.ts';
import { type CapturedOutput, captureOutput } from './stderr.ts';
import { settlesWithin, signalGroup } from './terminate.ts';
import { createWatchdog, type HangBudgets, type HangKind, type Watchdog } from './watchdog.ts';

/** The part of a pino logger the bridge uses. */
export interface BridgeLogger {
  debug(fields: object, message: string): void;
  warn(fields: object, message: string): void;
}

/** A silence that was too long, with the Python stacks of all threads. */
export interface Hang {
  readonly kind: HangKind;
  readonly activity: string;
  readonly step: number;
  readonly stack: string;
}

/** How a sidecar ended. Only this is final; sockets never decide. */
export interface SidecarExit extends ProcessExit {
  readonly stderrTail: string;
  /** Number of the last event that was handled, -1 for none. */
  readonly lastSeq: number;
  /** Why the bridge ended it (E_PROTOCOL, E_SIDECAR_HANG, or what a handler threw); absent when it ended by itself. */
  readonly error?: RcmBridgeError;
}

export interface SidecarOptions {
  /** Absolute path of the interpreter. */
  readonly python: string;
  /** Default: py/launch.py of this package. */
  readonly launchFile?: string;
  /** Added to the allow-list of the environment. */
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd: string;
  readonly logger: BridgeLogger;
  /** Gets each event in order; the next one is received after the promise has resolved. */
  readonly onEvent: (event: SidecarEvent) => void | Promise<void>;
  readonly onBlob: (blob: SidecarBlob) => void | Promise<void>;
  readonly onHeartbeat?: (heartbeat: Heartbeat) => void;
  readonly onHang?: (hang: Hang) => void;
  readonly helloTimeoutMs?: number;
  readonly readyTimeoutMs?: number;
  readonly budgets?: HangBudgets;
  /** Cancels starting; later it has no effect. */
  readonly signal?: AbortSignal;
  /** What the sidecar prints is appended here. */
  readonly stderrFile?: string;
}

/** A running Python process that serves one job after another. */
export interface Sidecar {
  readonly pid: number;
  readonly hello: Hello;
  readonly ready: Ready;
  /** From spawn to the accepted handshake, in milliseconds. */
  readonly handshakeMs: number;
  /**
   * Sends a request and waits for its answer. After `run.cancel` the sidecar is killed (E_SIDECAR_HANG) when no `end`
   * comes within its deadline.
   */
  request<T extends RequestType>(type: T, body: RequestBody<T>, options?: RequestOptions): Promise<ResponseValue>;
  /** Resolves once the process is gone and every event it has sent is handled. Never rejects. */
  readonly exited: Promise<SidecarExit>;
  /** Asks it to leave, and kills it after `graceMs`: it ignores SIGTERM, see guard.py. Resolves when it is gone; may be called in a handler. */
  stop(options?: { readonly graceMs?: number }): Promise<void>;
  /** SIGKILL to the whole process group, at once. */
  kill(): void;
}

const defaults = { helloTimeoutMs: 20_000, readyTimeoutMs: 180_000, graceMs: 10_000 } as const;
const limits = { frameBytes, metricIntervalMs: 100, heartbeatIntervalMs: 1_000 } as const;
/** How long faulthandler has to print the stacks of a hanging process. */
const dumpMs = 2_000;
/** After the exit: events still on their way have come when nothing came for this long. */
const quietMs = 10;

/**
 * Starts the sidecar and waits until it is ready for jobs.
 *
 * @throws RcmBridgeError E_SIDECAR_START (no hello, no ready, ended early; with what it printed), E_PROTOCOL, PythonError
 * when torch cannot be imported, AbortedError. Whatever it throws, no process, socket or folder is left.
 */
export async function startSidecar(options: SidecarOptions): Promise<Sidecar> {
  if (options.signal?.aborted) throw new AbortedError(options.signal.reason);
  const schemaHash = await protocolSchemaHash();
  const endpoint = await createEndpoint();
  try {
    const sockets = await bindSockets(endpoint.addresses);
    return await new Session(options, endpoint, sockets, schemaHash).start();
  } catch (error) {
    await endpoint.remove();
    throw error;
  }
}

/** The error for a sidecar that ended when it should not have. */
export function sidecarExitError(exit: SidecarExit): RcmBridgeError {
  if (exit.error) return exit.error;
  const how = exit.signal === null ? `with code ${exit.code}` : `by signal ${exit.signal}`;
  const { code, signal, stderrTail, lastSeq } = exit;
  return new RcmBridgeError('E_SIDECAR_EXIT', `The Python sidecar ended ${how}.`, {
    details: { code, signal, stderrTail, lastSeq },
  });
}

interface Deferred<T> {
  readonly promise: Promise<T>;
  resolve(value: T): void;
  reject(error: Error): void;
}

function deferred<T>(): Deferred<T> {
  let resolve: (value: T) => void = () => undefined;
  let reject: (error: Error) => void = () => undefined;
  const promise = new Promise<T>((onValue, onError) => {
    resolve = onValue;
    reject = onError;
  });
  promise.catch(() => undefined);
  return { promise, resolve, reject };
}

/** One process and its sockets, from spawn to exit. */
class Session {
  readonly #options: SidecarOptions;
  readonly #endpoint: Endpoint;
  readonly #sockets: Sockets;
  readonly #schemaHash: string;
  readonly #token = randomBytes(32).toString('base64url');
  readonly #requests: PendingRequests = createRequests();
  readonly #events: EventStream;
  readonly #watchdog: Watchdog;
  readonly #hello = deferred<Hello>();
  readonly #ready = deferred<Ready>();
  readonly #finished = deferred<SidecarExit>();
  readonly #child: SidecarProcess;
  readonly #gone: Promise<ProcessExit>;
  readonly #spawnFailed: Promise<never>;
  readonly #output: CapturedOutput;
  readonly #startedAt = performance.now();
  #handshakeMs = 0;
  #peer: Uint8Array | undefined;
  #failure: RcmBridgeError | undefined;
  #handling = 0;
  #receivedAt = 0;
  #activity = 'loading';
  #step = 0;
  #watch: NodeJS.Timeout | undefined;
  #cancelTimer: NodeJS.Timeout | undefined;

  constructor(options: SidecarOptions, endpoint: Endpoint, sockets: Sockets, schemaHash: string) {
    this.#options = options;
    this.#endpoint = endpoint;
    this.#sockets = sockets;
    this.#schemaHash = schemaHash;
    this.#watchdog = createWatchdog(performance.now(), options.budgets);
    this.#events = createEventStream(event => this.#onEvent(event));
    const spawned = this.#spawn();
    this.#child = spawned.child;
    this.#gone = spawned.exited;
    this.#spawnFailed = spawned.failed;
    this.#output = captureOutput([this.#child.stdout, this.#child.stderr], options.stderrFile);
  }

  #spawn(): ReturnType<typeof spawnSidecar> {
    const { python, cwd, env, launchFile = join(packageRoot(), 'py', 'launch.py') } = this.#options;
    const line = { token: this.#token, endpoints: this.#endpoint.addresses, protocol: protocolRange[1] };
    try {
      return spawnSidecar({ python, launchFile, cwd, env: sidecarEnvironment(process.env, env), line });
    } catch (error) {
      this.#sockets.close();
      throw error;
    }
  }

  async start(): Promise<Sidecar> {
    this.#listen();
    void this.#gone.then(exit => this.#onExit(exit));
    const {
      helloTimeoutMs = defaults.helloTimeoutMs,
      readyTimeoutMs = defaults.readyTimeoutMs,
      signal,
    } = this.#options;
    const aborted = deferred<never>();
    const onAbort = (): void => aborted.reject(new AbortedError(signal?.reason));
    signal?.addEventListener('abort', onAbort, { once: true });
    const ended = this.#finished.promise.then(exit => Promise.reject(this.#startError(exit)));
    ended.catch(() => undefined);
    try {
      const stops = [this.#spawnFailed, ended, aborted.promise];
      const hello = await this.#within(Promise.race([this.#hello.promise, ...stops]), helloTimeoutMs, 'say hello');
      const ready = await this.#within(Promise.race([this.#ready.promise, ...stops]), readyTimeoutMs, 'become ready');
      return this.#handle(hello, ready);
    } catch (error) {
      this.kill();
      await this.#finished.promise;
      throw error;
    } finally {
      signal?.removeEventListener('abort', onAbort);
    }
  }

  #handle(hello: Hello, ready: Ready): Sidecar {
    return {
      pid: this.#child.pid as number,
      hello,
      ready,
      handshakeMs: this.#handshakeMs,
      request: (type, body, options) => this.#request(type, body, options),
      exited: this.#finished.promise,
      stop: options => this.#stop(options?.graceMs),
      kill: () => this.kill(),
    };
  }

  kill(): void {
    if (this.#child.pid !== undefined) signalGroup(this.#child.pid, 'SIGKILL');
  }

  async #within<T>(promise: Promise<T>, timeMs: number, what: string): Promise<T> {
    if (await settlesWithin(promise, timeMs)) return promise;
    throw new RcmBridgeError('E_SIDECAR_START', `The Python sidecar did not ${what} within ${timeMs} ms.`, {
      details: { stderrTail: this.#output.tail() },
    });
  }

  /** Ended before it was ready. */
  #startError(exit: SidecarExit): Error {
    if (exit.error) return exit.error;
    const how = exit.signal === null ? `with code ${exit.code}` : `by signal ${exit.signal}`;
    const lastLine = exit.stderrTail.trimEnd().split('\n').at(-1) ?? '';
    const { code, signal, stderrTail } = exit;
    return new RcmBridgeError(
      'E_SIDECAR_START',
      `The Python sidecar ended ${how} before it was ready${lastLine === '' ? '.' : `: ${lastLine}`}`,
      { details: { code, signal, stderrTail } },
    );
  }

  // Receiving

  #listen(): void {
    const { receiveControl, receiveEvent, receiveBlob } = this.#sockets;
    const loops = [
      this.#loop(receiveControl, frames => this.#onControl(frames)),
      this.#loop(receiveEvent, frames => this.#events.take(frames)),
      this.#loop(receiveBlob, frames => this.#onBlob(frames)),
    ];
    for (const loop of loops) loop.catch((error: unknown) => this.#fail(asBridgeError(error)));
  }

  async #loop(
    receive: () => Promise<readonly Uint8Array[] | undefined>,
    take: (frames: readonly Uint8Array[]) => void | Promise<void>,
  ): Promise<void> {
    for (;;) {
      const frames = await receive();
      if (frames === undefined || this.#failure) return;
      this.#receivedAt = performance.now();
      this.#handling += 1;
      try {
        await take(frames);
      } finally {
        this.#handling -= 1;
      }
    }
  }

  #onControl([identity, ...frames]: readonly Uint8Array[]): void {
    if (identity === undefined) return;
    if (this.#peer && Buffer.compare(identity, this.#peer) !== 0) {
      this.#options.logger.warn({}, 'ignored a control message of a stranger');
      return;
    }
    if (frames.some(frame => frame.byteLength > frameBytes))
      throw protocolError(`The sidecar sent a control message of more than ${frameBytes} bytes.`);
    const { envelope, body } = decodeMessage(frames, controlToNode);
    if (this.#peer === undefined) {
      if (envelope.t !== 'hello') throw protocolError(`The sidecar sent ${envelope.t} before hello.`);
      this.#welcome(identity, body as Hello);
      return;
    }
    this.#watchdog.alive(performance.now());
    this.#onAnswer(envelope.t, envelope.re, body);
  }

  #welcome(identity: Uint8Array, hello: Hello): void {
    const protocol = acceptHello(hello, this.#token, this.#schemaHash);
    // The identity frame is a view of ZeroMQ's memory: keep a copy.
    this.#peer = Uint8Array.from(identity);
    this.#handshakeMs = performance.now() - this.#startedAt;
    this.#send('welcome', { protocol, limits }).catch(error => this.#fail(asBridgeError(error)));
    this.#startWatching();
    this.#hello.resolve(hello);
  }

  #onAnswer(type: string, re: string | undefined, body: unknown): void {
    if (type === 'heartbeat') {
      const beat = body as Heartbeat;
      this.#moved(beat.activity, beat.step);
      this.#options.onHeartbeat?.(beat);
    } else if (type === 'ready') this.#ready.resolve(body as Ready);
    else if (type === 'ok' && re !== undefined) this.#requests.resolve(re, (body as { value: ResponseValue }).value);
    else if (type === 'error' && re !== undefined) this.#requests.reject(re, body as ErrorBody);
    else if (type === 'error') throw new PythonError(body as ErrorBody);
    else if (type !== 'bye') throw protocolError(`The sidecar sent an unexpected ${type}.`);
  }

  async #onEvent(event: SidecarEvent): Promise<void> {
    if (event.type === 'activity') this.#moved(event.body.activity, event.body.step);
    if (event.type === 'paused' || event.type === 'continued')
      this.#watchdog.pause(event.type === 'paused', performance.now());
    if (event.type === 'end') clearTimeout(this.#cancelTimer);
    await this.#options.onEvent(event);
  }

  async #onBlob(frames: readonly Uint8Array[]): Promise<void> {
    const { envelope, body, tensors } = decodeMessage(frames, blobs);
    await this.#options.onBlob({
      type: 'sample',
      time: envelope.ts,
      run: envelope.run,
      body: body as SidecarBlob['body'],
      tensors: Object.fromEntries(tensors.map(tensor => [tensor.name, tensor])),
    });
  }

  // Sending

  async #send(type: keyof typeof controlToPython, body: object, id?: string): Promise<void> {
    if (this.#peer === undefined) throw protocolError(`There is nobody to send ${type} to.`);
    const message = {
      v: protocolRange[1],
      t: type,
      ts: Date.now() / 1000,
      b: body,
      ...(id === undefined ? {} : { id }),
    };
    await this.#sockets.sendControl(this.#peer, [pack(message)]);
  }

  async #request<T extends RequestType>(
    type: T,
    body: RequestBody<T>,
    options?: RequestOptions,
  ): Promise<ResponseValue> {
    const checked = controlToPython[type].parse(body) as RequestBody<T>;
    if (type === 'run.cancel') this.#enforceCancel((checked as RequestBody<'run.cancel'>).deadlineMs);
    return this.#requests.add(type, id => this.#send(type, checked, id), options);
  }

  #enforceCancel(deadlineMs: number): void {
    clearTimeout(this.#cancelTimer);
    this.#cancelTimer = setTimeout(() => {
      const message = `The job did not stop within ${deadlineMs} ms.`;
      this.#failure ??= new RcmBridgeError('E_SIDECAR_HANG', message, { details: { step: this.#step } });
      this.kill();
    }, deadlineMs);
  }

  // Watching

  #startWatching(): void {
    const intervalMs = limits.heartbeatIntervalMs;
    let tickedAt = performance.now();
    this.#watchdog.forgive(tickedAt);
    this.#watch = setInterval(() => {
      const now = performance.now();
      if (now - tickedAt > 5 * intervalMs) this.#watchdog.forgive(now);
      tickedAt = now;
      const kind = this.#watchdog.check(now);
      if (kind !== undefined) void this.#onHang(kind);
    }, intervalMs / 4);
    this.#watch.unref();
  }

  #moved(activity: Heartbeat['activity'], step: number): void {
    this.#activity = activity;
    this.#step = step;
    this.#watchdog.seen(activity, step, performance.now());
  }

  async #onHang(kind: HangKind): Promise<void> {
    clearInterval(this.#watch);
    const mark = this.#output.mark();
    // All processes of the job print their stacks; one that was stopped does so as it goes on.
    if (process.platform !== 'win32' && this.#child.pid !== undefined) {
      signalGroup(this.#child.pid, 'SIGUSR1');
      signalGroup(this.#child.pid, 'SIGCONT');
    }
    if (await settlesWithin(this.#gone, dumpMs)) return;
    const hang = { kind, activity: this.#activity, step: this.#step, stack: this.#output.since(mark) };
    this.#options.onHang?.(hang);
    const what = kind === 'noHeartbeat' ? 'gave no sign of life' : `made no step while ${hang.activity}`;
    this.#fail(
      new RcmBridgeError('E_SIDECAR_HANG', `The Python sidecar ${what} (step ${hang.step}).`, { details: hang }),
    );
  }

  // Ending

  /** Something that cannot go on: the process is killed, the reason stands in its exit. */
  #fail(error: RcmBridgeError): void {
    this.#failure ??= error;
    this.kill();
  }

  async #stop(graceMs: number = defaults.graceMs): Promise<void> {
    this.#request('shutdown', { deadlineMs: graceMs }).catch(() => undefined);
    if (!(await settlesWithin(this.#gone, graceMs))) {
      this.kill();
      await this.#gone;
    }
    // Called by a handler, `exited` would wait for that handler.
    if (this.#handling === 0) await this.#finished.promise;
  }

  async #onExit(exit: ProcessExit): Promise<void> {
    clearInterval(this.#watch);
    clearTimeout(this.#cancelTimer);
    this.kill();
    await this.#drain();
    this.#sockets.close();
    this.#output.close();
    await this.#endpoint.remove();
    const ended: SidecarExit = {
      ...exit,
      stderrTail: this.#output.tail(),
      lastSeq: this.#events.lastSeq,
      ...(this.#failure ? { error: this.#failure } : {}),
    };
    this.#requests.close(sidecarExitError(ended));
    this.#finished.resolve(ended);
  }

  /** Waits until what the process has sent and printed is taken; a failure needs no more of it than its output. */
  async #drain(): Promise<void> {
    await settlesWithin(this.#output.ended, quietMs);
    const exitedAt = performance.now();
    while (!this.#failure) {
      const since = performance.now() - Math.max(this.#receivedAt, exitedAt);
      if (this.#handling === 0 && since >= quietMs) return;
      await new Promise(resolve => setTimeout(resolve, quietMs / 2));
    }
  }
}

function asBridgeError(error: unknown): RcmBridgeError {
  if (error instanceof RcmBridgeError) return error;
  const message = error instanceof Error ? error.message : String(error);
  return new RcmBridgeError('E_INTERNAL', `Handling a message of the sidecar failed: ${message}`, { cause: error });
}
