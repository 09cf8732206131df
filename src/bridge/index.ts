/**
 * How messages cross the border: the sidecar process, its sockets, and who notices when one side is gone.
 *
 * @module
 */
export type { SidecarBlob } from './event-stream.ts';
export type { RequestOptions, ResponseValue } from './requests.ts';
export {
  type BridgeLogger,
  type Hang,
  type Sidecar,
  type SidecarExit,
  type SidecarOptions,
  sidecarExitError,
  startSidecar,
} from './sidecar.ts';
export { defaultBudgets, type HangBudgets, type HangKind } from './watchdog.ts';
