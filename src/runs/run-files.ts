/** The files a run's owner keeps open, and its loggers. */
import { join } from 'node:path';
import type { RcmConfig } from '../config/types.ts';
import { type MetricSink, openCsvSink } from '../logging/csv-sink.ts';
import { combineLoggers, createLogger, type Logger, type LogLevel } from '../logging/logger.ts';
import { makeDirectory, openAppender } from './files.ts';
import { type Journal, openJournal } from './journal.ts';

export interface RunFiles {
  readonly journal: Journal;
  readonly sinks: readonly MetricSink[];
  /** Writes to logs/owner.log and to the caller's logger. */
  readonly logger: Logger;
  readonly level: LogLevel;
  readonly sidecarLog: string;
  close(): void;
}

/** @throws E_DISK_FULL */
export async function openRunFiles(
  runDir: string,
  attempt: number,
  { level, sinks: names }: RcmConfig['logging'],
  outer: Logger,
): Promise<RunFiles> {
  makeDirectory(join(runDir, 'logs'));
  const logFile = openAppender(join(runDir, 'logs', 'owner.log'));
  const ownLogger = await createLogger({ write: line => logFile.append(line) }, level);
  const journal = openJournal(runDir, attempt);
  const sinks = names.includes('csv') ? [openCsvSink(runDir)] : [];
  return {
    journal,
    sinks,
    logger: combineLoggers(quiet(ownLogger), outer),
    level,
    sidecarLog: join(runDir, 'logs', 'sidecar.log'),
    close: () => {
      for (const file of [...sinks, journal, logFile]) file.close();
    },
  };
}

/** A log that cannot be written must not end a run: the journal reports a full disk. */
function quiet(logger: Logger): Logger {
  const guard =
    (level: keyof Logger) =>
    (fields: object, message?: string): void => {
      try {
        logger[level](fields, message);
      } catch {
        // Said by the journal.
      }
    };
  return { debug: guard('debug'), info: guard('info'), warn: guard('warn'), error: guard('error') };
}
