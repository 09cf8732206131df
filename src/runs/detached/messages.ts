/** What a starter and the owner process it has started tell each other, over the IPC channel of Node. */
import type { Interpreter } from '../context.ts';
import type { PlacementOptions } from '../launchers/placement.ts';
import type { PreparedRun } from '../start-run.ts';
import type { SentError } from './sent-error.ts';

/** A new run that has passed the checks of its starter, or one that exists. */
export type OwnerTask =
  | { readonly kind: 'start'; readonly id: string; readonly prepared: PreparedRun; readonly smoke: boolean }
  | ({ readonly kind: 'resume'; readonly allowDrift: boolean } & PlacementOptions);

/** All an owner process has to know. It comes as a message: words of a command line can be seen by everybody. */
export interface OwnerOrder {
  readonly task: OwnerTask;
  /** Absolute. */
  readonly runDir: string;
  readonly runsDir: string;
  readonly cwd: string;
  readonly python: Interpreter;
  /** That of the starter, for environment.json. */
  readonly commandLine: readonly string[];
}

/** From the starter. It may take its order back until the run is accepted, also by ending. */
export type StarterMessage = { readonly type: 'order'; readonly order: OwnerOrder } | { readonly type: 'abort' };

/** From the owner; `accepted` and `refused` are the last. */
export type OwnerMessage =
  | { readonly type: 'notice'; readonly text: string }
  | { readonly type: 'created' }
  | { readonly type: 'accepted'; readonly wasComplete: boolean }
  | { readonly type: 'refused'; readonly error: SentError };
