/** Errors as plain data, so that one process can throw what happened in another. */
import {
  isRcmBridgeError,
  PythonError,
  type PythonException,
  RcmBridgeError,
  type RcmBridgeErrorOptions,
} from '../../errors/index.ts';
import { asError } from '../run-errors.ts';

/** An error of this package without its stack; `chain` and `traceback` are there for those of Python. */
export interface SentError {
  readonly code: RcmBridgeError['code'];
  readonly message: string;
  readonly hint: string | null;
  readonly details: Readonly<Record<string, unknown>> | null;
  /** Message of a cause that is not one of ours. */
  readonly cause: SentError | string | null;
  readonly python?: { readonly chain: readonly PythonException[]; readonly traceback: string };
}

export function sentError(thrown: unknown): SentError {
  const error = asError(thrown);
  const { code, message, hint = null, details = null } = error;
  if (isPythonError(error)) {
    const python = { chain: chainOf(error), traceback: error.remoteStack };
    return { code, message, hint, details, cause: null, python };
  }
  return { code, message, hint, details, cause: causeOf(error.cause) };
}

/** The error again, of the same class. */
export function receivedError({ code, message, hint, details, cause, python }: SentError): RcmBridgeError {
  if (python) return new PythonError({ code, message, hint, details: details ?? {}, step: null, ...python });
  const options: RcmBridgeErrorOptions = {
    hint: hint ?? undefined,
    details: details ?? undefined,
    ...(cause === null ? {} : { cause: typeof cause === 'string' ? new Error(cause) : receivedError(cause) }),
  };
  return new RcmBridgeError(code, message, options);
}

const isPythonError = (error: unknown): error is PythonError => isRcmBridgeError(error) && error.name === 'PythonError';

function chainOf(error: PythonError): readonly PythonException[] {
  const raised = { type: error.pythonType, message: error.message, frames: error.frames };
  return [raised, ...(isPythonError(error.cause) ? chainOf(error.cause) : [])];
}

function causeOf(cause: unknown): SentError | string | null {
  if (isRcmBridgeError(cause)) return sentError(cause);
  return cause instanceof Error ? cause.message : null;
}
