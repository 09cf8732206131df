import { inspect } from 'node:util';
import { isErrorCode } from './codes.ts';
import { RcmBridgeError } from './rcm-bridge-error.ts';

export interface PythonFrame {
  readonly file: string;
  readonly line: number;
  readonly function: string;
  readonly text: string;
}

/** One exception of a chain: the raised one first, then its `__cause__` or `__context__`. */
export interface PythonException {
  readonly type: string;
  readonly message: string;
  readonly frames: readonly PythonFrame[];
}

/** An error as the sidecar sends it (`error` and `end` messages of the protocol). */
export interface PythonErrorBody {
  readonly code: string;
  readonly message: string;
  readonly hint: string | null;
  readonly chain: readonly PythonException[];
  readonly traceback: string;
  readonly step: number | null;
  readonly details: Readonly<Record<string, unknown>>;
}

/** An exception raised in Python. Its stack ends with the Python frames; `cause` is the next exception of the chain. */
export class PythonError extends RcmBridgeError {
  override readonly name = 'PythonError';
  readonly pythonType: string;
  readonly frames: readonly PythonFrame[];
  /** The traceback as Python printed it; may be empty. */
  readonly remoteStack: string;

  constructor(body: PythonErrorBody) {
    const [raised, ...causes] = body.chain;
    const code = isErrorCode(body.code) ? body.code : 'E_TRAINING';
    const next = causes[0];
    super(code, body.message || (raised?.message ?? 'Python failed without a message.'), {
      hint: body.hint ?? undefined,
      details: { ...body.details, ...(body.step === null ? {} : { step: body.step }) },
      ...(next
        ? { cause: new PythonError({ ...body, message: next.message, hint: null, chain: causes, traceback: '' }) }
        : {}),
    });
    this.pythonType = raised?.type ?? 'Exception';
    this.frames = raised?.frames ?? [];
    this.remoteStack = body.traceback;
    const frames = this.frames.map(frame => `    at ${frame.function} (${frame.file}:${frame.line})`);
    if (frames.length > 0) this.stack = [this.stack, '    --- Python ---', ...frames].join('\n');
  }

  override toJSON(): Readonly<Record<string, unknown>> {
    return { ...super.toJSON(), pythonType: this.pythonType, frames: this.frames };
  }

  /** The error as console.log shows it: the stack with Python's frames, then the chain, without our own fields. */
  [inspect.custom](_depth: number, options: Parameters<typeof inspect>[1]): string {
    const shown = this.stack ?? `${this.name}: ${this.message}`;
    return this.cause === undefined ? shown : `${shown}\n  [cause]: ${inspect(this.cause, options)}`;
  }
}
