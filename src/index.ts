/**
 * rcm-bridge: distil diffusion models to 1-4 steps. Start with `createBridge()`.
 * Importing this module starts no process and opens nothing.
 *
 * @module
 */
export type { RcmConfig, RcmConfigInput } from './config/types.ts';
export type { BuildDataOptions, BuiltSet } from './data/build.ts';
export type { EncodeDataOptions, EncodedSet } from './data/encode.ts';
export type { SetOptions, WrittenSet } from './data/set-job.ts';
export {
  AbortedError,
  type ErrorCode,
  type ExitCode,
  errorCodes,
  isRcmBridgeError,
  PythonError,
  type PythonFrame,
  RcmBridgeError,
  RunFailedError,
} from './errors/index.ts';
export type { EvaluatedRow, Evaluation, MetricValue, Sampler } from './evaluation/evaluation.ts';
export type { Gate, JudgedGate } from './evaluation/gates.ts';
export type { Scorecard } from './evaluation/scorecard.ts';
export type { Logger } from './logging/logger.ts';
export { eventLine } from './logging/ndjson.ts';
export type { GpuName } from './plan/machines.ts';
export type { Plan } from './plan/plan.ts';
export type { LayoutName, WeightsInspection } from './protocol/messages.ts';
export { type Bridge, createBridge } from './runs/bridge.ts';
export type { CheckOptions, ConfigCheck } from './runs/check-config.ts';
export type { DryRun } from './runs/dry-run.ts';
export type { EventsOptions } from './runs/event-stream.ts';
export type {
  Activity,
  AlarmEvent,
  CheckpointEvent,
  EndEvent,
  EvaluationEvent,
  GapEvent,
  LogEvent,
  MetricEvent,
  ProgressEvent,
  RunEvent,
  RunEventOf,
  RunEventType,
  SampleEvent,
  StateEvent,
} from './runs/events.ts';
export type { CancelOptions, RunDescription, RunHandle, RunResult, SampleRequest } from './runs/handle.ts';
export type {
  BridgeOptions,
  RenderedSample,
  ResumeOptions,
  RunOptions,
  SampleOptions,
  SampleResult,
} from './runs/options.ts';
export type { PlanOptions } from './runs/plan-run.ts';
export type { EndState, RunErrorRecord, RunParent, RunProgress, RunRecord, RunState } from './runs/record.ts';
export type { ComparedWeights, WeightsProblem } from './weights/compare.ts';
export type { FetchOptions, FetchPlan, FetchResult } from './weights/fetch.ts';
export type {
  ConvertOptions,
  WeightsConversion,
  WeightsOptions,
  WeightsProgress,
  WeightsVerification,
} from './weights/jobs.ts';
export type { ListedNetwork, Release, WeightsList } from './weights/list.ts';
