/** What a launcher has to do: start the process that trains and hand over what it sends. */
import type { SidecarBlob } from '../../bridge/event-stream.ts';
import type { Hang, Sidecar } from '../../bridge/sidecar.ts';
import type { Logger } from '../../logging/logger.ts';
import type { SidecarEvent } from '../../protocol/messages.ts';

export type LaunchedSidecar = Pick<Sidecar, 'pid' | 'ready' | 'request' | 'exited' | 'stop' | 'kill'>;

export interface Launch {
  /** The interpreter. */
  readonly python: string;
  readonly cwd: string;
  /** Variables added to what the sidecar may see. */
  readonly env: Readonly<Record<string, string>>;
  readonly logger: Logger;
  /** What the process prints is appended here. */
  readonly stderrFile?: string;
  /** Cancels starting. */
  readonly signal: AbortSignal;
  /** Events arrive in order; the next one waits for the promise. */
  readonly onEvent: (event: SidecarEvent) => Promise<void>;
  readonly onBlob: (blob: SidecarBlob) => Promise<void>;
  /** A silence that was too long; the process is ended by the launcher. */
  readonly onHang?: (hang: Hang) => void;
}

/** Resolves when the sidecar waits for a job. @throws E_SIDECAR_START, E_PROTOCOL, E_ABORTED, PythonError */
export type Launcher = (launch: Launch) => Promise<LaunchedSidecar>;
