import { AbortedError, PythonError, RcmBridgeError } from '../errors/index.ts';
import type { ErrorBody } from '../protocol/index.ts';

export type ResponseValue = Readonly<Record<string, unknown>>;

export interface RequestOptions {
  /** Give up waiting after this long; the request itself is not taken back. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
}

/** Requests that wait for their answer. */
export interface PendingRequests {
  /** Registers a request; `send` is called with its id. */
  add(type: string, send: (id: string) => Promise<void>, options?: RequestOptions): Promise<ResponseValue>;
  resolve(id: string, value: ResponseValue): void;
  reject(id: string, body: ErrorBody): void;
  /** Rejects all that wait and all that come. */
  close(error: Error): void;
}

export function createRequests(): PendingRequests {
  const waiting = new Map<string, { resolve(value: ResponseValue): void; reject(error: Error): void }>();
  let next = 0;
  let closed: Error | undefined;

  const add = (type: string, send: (id: string) => Promise<void>, options: RequestOptions = {}) => {
    const { timeoutMs, signal } = options;
    if (closed) return Promise.reject(closed);
    if (signal?.aborted) return Promise.reject(new AbortedError(signal.reason));
    const id = String(next++);
    let timer: NodeJS.Timeout | undefined;
    let onAbort: (() => void) | undefined;
    const answer = new Promise<ResponseValue>((resolve, reject) => {
      waiting.set(id, { resolve, reject });
      if (timeoutMs !== undefined) timer = setTimeout(() => reject(lateAnswer(type, timeoutMs)), timeoutMs);
      onAbort = () => reject(new AbortedError(signal?.reason));
      signal?.addEventListener('abort', onAbort, { once: true });
      send(id).catch(reject);
    });
    return answer.finally(() => {
      waiting.delete(id);
      clearTimeout(timer);
      if (onAbort) signal?.removeEventListener('abort', onAbort);
    });
  };

  return {
    add,
    resolve: (id, value) => waiting.get(id)?.resolve(value),
    reject: (id, body) => waiting.get(id)?.reject(new PythonError(body)),
    close: error => {
      closed = error;
      for (const request of waiting.values()) request.reject(error);
    },
  };
}

function lateAnswer(type: string, timeoutMs: number): RcmBridgeError {
  return new RcmBridgeError('E_SIDECAR_HANG', `The sidecar did not answer ${type} within ${timeoutMs} ms.`);
}
