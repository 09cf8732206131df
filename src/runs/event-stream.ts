/** Hands events to any number of readers; each has its own bounded buffer, so that none can slow the run or another reader. */
import type { RunEvent, RunEventOf, RunEventType } from './events.ts';

export interface EventsOptions<Type extends RunEventType = RunEventType> {
  /** Only these types; `gap` and `end` always come. Default: all. */
  readonly types?: readonly Type[];
  /** How many events wait for this reader at most; what overflows is counted in a `gap` event. Default 1,000. */
  readonly buffer?: number;
}

export interface EventStream {
  publish(event: RunEvent): void;
  /** A reader of the events from now on, or, with `fromStart`, of all that are still remembered. */
  read<Type extends RunEventType>(
    options?: EventsOptions<Type>,
    fromStart?: boolean,
  ): AsyncIterableIterator<RunEventOf<Type | 'gap' | 'end'>>;
}

export const defaultBuffer = 1_000;

export function createEventStream(attempt: number): EventStream {
  const readers = new Set<Reader>();
  // What a first reader gets that comes a little late, e.g. after `await bridge.distill()`.
  const remembered = createBuffer(defaultBuffer, attempt);
  let end: RunEvent | undefined;
  return {
    publish: event => {
      if (end) return;
      remembered.add(event);
      for (const reader of readers) reader.push(event);
      if (event.type === 'end') end = event;
    },
    read: (options = {}, fromStart = false) => {
      const wanted = options.types && new Set<string>([...options.types, 'gap', 'end']);
      const reader = createReader(options.buffer ?? defaultBuffer, attempt, wanted, () => readers.delete(reader));
      if (fromStart) for (const event of remembered.peek()) reader.push(event);
      else if (end) reader.push(end);
      readers.add(reader);
      return reader.iterator as AsyncIterableIterator<never>;
    },
  };
}

interface Reader {
  push(event: RunEvent): void;
  readonly iterator: AsyncIterableIterator<RunEvent>;
}

function createReader(
  size: number,
  attempt: number,
  wanted: ReadonlySet<string> | undefined,
  forget: () => void,
): Reader {
  const buffer = createBuffer(size, attempt);
  let wake: (() => void) | undefined;
  let done = false;

  const finish = (): IteratorResult<RunEvent> => {
    done = true;
    forget();
    wake?.();
    return { done: true, value: undefined };
  };
  const next = async (): Promise<IteratorResult<RunEvent>> => {
    for (;;) {
      if (done) return finish();
      const event = buffer.take();
      if (event) {
        if (event.type === 'end') finish();
        return { done: false, value: event };
      }
      await new Promise<void>(resolve => {
        wake = resolve;
      });
    }
  };
  // Calls of next() that overlap take turns.
  let last: Promise<unknown> = Promise.resolve();
  const iterator: AsyncIterableIterator<RunEvent> = {
    next: () => {
      const result = last.then(next);
      last = result;
      return result;
    },
    return: async () => finish(),
    [Symbol.asyncIterator]: () => iterator,
  };
  return {
    iterator,
    push: event => {
      if (done || (wanted && !wanted.has(event.type))) return;
      buffer.add(event);
      wake?.();
    },
  };
}

interface EventBuffer {
  add(event: RunEvent): void;
  take(): RunEvent | undefined;
  peek(): readonly RunEvent[];
}

/**
 * Keeps the newest `size` events; the oldest go first and leave a `gap`. A newer `progress` replaces one that waits.
 */
function createBuffer(size: number, attempt: number): EventBuffer {
  const events: RunEvent[] = [];
  let lost = 0;
  const gap = (): RunEvent => ({ type: 'gap', attempt, time: Date.now() / 1000, lost });
  return {
    add: event => {
      if (event.type === 'progress' && events.at(-1)?.type === 'progress') events.pop();
      events.push(event);
      if (events.length <= Math.max(1, size)) return;
      events.shift();
      lost += 1;
    },
    take: () => {
      if (lost === 0) return events.shift();
      const event = gap();
      lost = 0;
      return event;
    },
    peek: () => (lost > 0 ? [gap(), ...events] : [...events]),
  };
}
