/** Exit codes of every command (docs/errors.md lists which error has which). `error.exitCode` holds the same numbers. */
export const exitCodes = {
  ok: 0,
  runFailed: 1,
  usage: 2,
  environment: 3,
  sidecarLost: 4,
  unusableWeights: 5,
  gateNotMet: 6,
  stopped: 7,
  sigint: 130,
  sigterm: 143,
} as const;

export const exitCodeHelp =
  'Exit codes: 0 ok, 1 run failed, 2 usage or config, 3 environment, 4 sidecar lost,\n' +
  '5 checkpoint or weights unusable, 6 quality gate not met, 7 stopped early and resumable, 130 SIGINT, 143 SIGTERM';
