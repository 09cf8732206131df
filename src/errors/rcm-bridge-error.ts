import { type ErrorCode, type ExitCode, errorCodes } from './codes.ts';

/** Shared by all copies of the package in one process, unlike a class. */
const marker = Symbol.for('rcm-bridge.error');

export interface RcmBridgeErrorOptions {
  /** What to do next, one sentence. */
  readonly hint?: string | undefined;
  readonly details?: Readonly<Record<string, unknown>> | undefined;
  readonly cause?: unknown;
}

/**
 * Base of every error this package throws on purpose. `code` is stable and listed in docs/errors.md, `exitCode` is what
 * the command line exits with, `hint` says what to do. Messages may change between versions.
 */
export class RcmBridgeError extends Error {
  override readonly name: string = 'RcmBridgeError';
  readonly code: ErrorCode;
  readonly exitCode: ExitCode;
  readonly hint?: string;
  readonly details?: Readonly<Record<string, unknown>>;

  constructor(code: ErrorCode, message: string, options: RcmBridgeErrorOptions = {}) {
    super(message, 'cause' in options ? { cause: options.cause } : undefined);
    this.code = code;
    this.exitCode = errorCodes[code].exitCode;
    if (options.hint !== undefined) this.hint = options.hint;
    if (options.details !== undefined) this.details = options.details;
    Object.defineProperty(this, marker, { value: true });
  }

  /** Stable form for logs and run.json; without stacks. */
  toJSON(): Readonly<Record<string, unknown>> {
    return {
      name: this.name,
      code: this.code,
      exitCode: this.exitCode,
      message: this.message,
      ...(this.hint === undefined ? {} : { hint: this.hint }),
      ...(this.details === undefined ? {} : { details: this.details }),
      ...(this.cause instanceof Error ? { cause: causeOf(this.cause) } : {}),
    };
  }
}

const causeOf = (cause: Error): unknown =>
  isRcmBridgeError(cause) ? cause.toJSON() : { name: cause.name, message: cause.message };

/** Holds across two copies of the package, where `instanceof` does not. */
export function isRcmBridgeError(value: unknown): value is RcmBridgeError {
  return typeof value === 'object' && value !== null && (value as Record<symbol, unknown>)[marker] === true;
}
