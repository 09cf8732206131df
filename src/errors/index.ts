export { AbortedError, throwIfAborted } from './aborted-error.ts';
export { type ErrorCode, type ExitCode, errorCodes, isErrorCode } from './codes.ts';
export { PythonError, type PythonErrorBody, type PythonException, type PythonFrame } from './python-error.ts';
export { isRcmBridgeError, RcmBridgeError, type RcmBridgeErrorOptions } from './rcm-bridge-error.ts';
export { RunFailedError, type RunFailedErrorOptions } from './run-failed-error.ts';
