/** The logger a run uses. A service hands in its own; pino's loggers fit. Silent by default. */

/** From everything to the least. */
export const logLevels = ['trace', 'debug', 'info', 'warn', 'error'] as const;
export type LogLevel = (typeof logLevels)[number];

export interface Logger {
  debug(fields: object, message?: string): void;
  info(fields: object, message?: string): void;
  warn(fields: object, message?: string): void;
  error(fields: object, message?: string): void;
}

const nothing = (): void => undefined;

export const silentLogger: Logger = { debug: nothing, info: nothing, warn: nothing, error: nothing };

/** Something pino can write to. */
export interface LogTarget {
  write(line: string): unknown;
}

/**
 * A pino logger that writes JSON lines to a given target. No worker threads and no transports: they would outlive
 * the run and hide write errors.
 */
export async function createLogger(target: LogTarget, level: LogLevel = 'info'): Promise<Logger> {
  const { pino } = await import('pino');
  const options = { level, base: null, timestamp: pino.stdTimeFunctions.isoTime };
  const logger: Logger = pino(options, { write: (line: string) => void target.write(line) });
  return logger;
}

/** Logs to several loggers. */
export function combineLoggers(...loggers: readonly Logger[]): Logger {
  const all =
    (level: keyof Logger) =>
    (fields: object, message?: string): void => {
      for (const logger of loggers) logger[level](fields, message);
    };
  return { debug: all('debug'), info: all('info'), warn: all('warn'), error: all('error') };
}
