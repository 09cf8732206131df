/** Answers requests of other processes: accepted at once, done or refused when the work is over. */
import { isRcmBridgeError } from '../errors/index.ts';
import type { CancelOptions, RunHandle, SampleRequest } from './handle.ts';
import { type InboxRequest, type RequestAction, requestActions, watchInbox } from './inbox.ts';
import type { Answer, Journal } from './journal.ts';

export interface AnswerParts {
  readonly runDir: string;
  readonly handle: RunHandle;
  readonly journal: Journal;
  readonly onWriteError: (error: unknown) => void;
}

/** Returns a function that ends it. */
export function answerRequests({ runDir, handle, journal, onWriteError }: AnswerParts): () => void {
  const write = (answer: Answer): void => {
    try {
      journal.write(answer);
    } catch (error) {
      onWriteError(error);
    }
  };
  const answer = async ({ id, action, args }: InboxRequest): Promise<void> => {
    const about = { type: 'answer', re: id, action } as const;
    if (!isAction(action)) {
      const message = `The action ${JSON.stringify(action)} is unknown; there are ${requestActions.join(', ')}.`;
      return write({ ...about, status: 'refused', error: { code: 'E_USAGE', message } });
    }
    write({ ...about, status: 'accepted' });
    try {
      write({ ...about, status: 'done', value: await act(handle, action, args) });
    } catch (error) {
      write({ ...about, status: 'refused', error: errorOf(error) });
    }
  };
  const refuse = (fileName: string): void =>
    write({
      type: 'answer',
      re: fileName.replace(/\.json$/, ''),
      action: 'unknown',
      status: 'refused',
      error: { code: 'E_USAGE', message: `${fileName} in the inbox is no request.` },
    });
  return watchInbox(runDir, request => void answer(request), refuse);
}

const isAction = (action: string): action is RequestAction => (requestActions as readonly string[]).includes(action);

async function act(
  handle: RunHandle,
  action: RequestAction,
  args: Readonly<Record<string, unknown>>,
): Promise<Readonly<Record<string, unknown>>> {
  switch (action) {
    case 'cancel':
      return handle.cancel(cancelOptions(args));
    case 'pause':
      await handle.pause();
      return {};
    case 'continue':
      await handle.continue();
      return {};
    case 'checkpoint':
      return handle.checkpoint();
    case 'sample':
      await handle.sample(sampleRequest(args));
      return {};
  }
}

const cancelOptions = ({ checkpoint, deadlineMs }: Readonly<Record<string, unknown>>): CancelOptions => ({
  ...(typeof checkpoint === 'boolean' ? { checkpoint } : {}),
  ...(typeof deadlineMs === 'number' && deadlineMs >= 0 ? { deadlineMs } : {}),
});

function sampleRequest({ steps, num, seed, label }: Readonly<Record<string, unknown>>): SampleRequest {
  const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && Number(value) >= 0;
  return {
    ...(isCount(steps) ? { steps } : {}),
    ...(isCount(num) ? { num } : {}),
    ...(isCount(seed) ? { seed } : {}),
    ...(isCount(label) ? { label } : {}),
  };
}

function errorOf(error: unknown): NonNullable<Answer['error']> {
  if (isRcmBridgeError(error)) {
    return { code: error.code, message: error.message, ...(error.hint === undefined ? {} : { hint: error.hint }) };
  }
  return { code: 'E_INTERNAL', message: error instanceof Error ? error.message : String(error) };
}
