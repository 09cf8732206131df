import { RcmBridgeError } from './rcm-bridge-error.ts';

/** The caller's AbortSignal fired. `cause` is the signal's reason. */
export class AbortedError extends RcmBridgeError {
  override readonly name = 'AbortedError';

  constructor(reason: unknown, message = 'Cancelled by its AbortSignal.') {
    super('E_ABORTED', message, { cause: reason });
  }
}

/** Throws AbortedError when the signal has fired. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new AbortedError(signal.reason);
}
