import type { ErrorCode } from './codes.ts';
import { RcmBridgeError, type RcmBridgeErrorOptions } from './rcm-bridge-error.ts';

export interface RunFailedErrorOptions extends RcmBridgeErrorOptions {
  readonly runId: string;
  readonly runDir: string;
}

/** A run that ended in the state `failed`. `code` is that of what went wrong, `cause` the error itself. */
export class RunFailedError extends RcmBridgeError {
  override readonly name = 'RunFailedError';
  readonly runId: string;
  readonly runDir: string;

  constructor(code: ErrorCode, message: string, options: RunFailedErrorOptions) {
    const { runId, runDir, ...rest } = options;
    super(code, message, rest);
    this.runId = runId;
    this.runDir = runDir;
  }

  override toJSON(): Readonly<Record<string, unknown>> {
    return { ...super.toJSON(), runId: this.runId, runDir: this.runDir };
  }
}
