/** What Ctrl-C means to a command that is not a run: the first signal stops the work and cleans up, a second ends. */
const exitCodes = { SIGINT: 130, SIGTERM: 143 } as const;

export interface AbortOnSignals {
  readonly signal: AbortSignal;
  /** Exit code of the signal that came, if one came. */
  exitCode(): number | undefined;
  stop(): void;
}

export function abortOnSignals(): AbortOnSignals {
  const controller = new AbortController();
  let exitCode: number | undefined;
  const onSignal = (signal: NodeJS.Signals): void => {
    const code = exitCodes[signal as keyof typeof exitCodes];
    if (exitCode !== undefined) process.exit(code);
    exitCode = code;
    controller.abort(signal);
  };
  const signals = Object.keys(exitCodes) as readonly NodeJS.Signals[];
  for (const signal of signals) process.on(signal, onSignal);
  return {
    signal: controller.signal,
    exitCode: () => exitCode,
    stop: () => {
      for (const signal of signals) process.off(signal, onSignal);
    },
  };
}
