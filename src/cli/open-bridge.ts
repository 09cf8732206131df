import { RcmBridgeError } from '../errors/index.ts';
import type { Bridge } from '../index.ts';
import { createLogger, type LogLevel, logLevels } from '../logging/logger.ts';
import { nearest } from '../nearest.ts';
import type { Options } from './command.ts';
import { askOnTerminal, isOn } from './consent.ts';
import { text } from './options.ts';
import type { Output } from './output.ts';

/**
 * The API as the command line uses it: flags before RCM_BRIDGE_* variables before defaults. Without an environment
 * a terminal is asked once; without a terminal `--yes` has to agree, else the command ends with E_CONSENT.
 */
export async function withBridge<T>(options: Options, output: Output, use: (bridge: Bridge) => Promise<T>): Promise<T> {
  const { createBridge } = await import('../index.ts');
  const env = process.env;
  const runsDir = text(options, 'runs-dir') ?? env.RCM_BRIDGE_RUNS_DIR;
  const python = text(options, 'python') ?? env.RCM_BRIDGE_PYTHON;
  const level = logLevel(output.verbosity, env.RCM_BRIDGE_LOG_LEVEL);
  const bridge = await createBridge({
    ...(runsDir === undefined ? {} : { runsDir }),
    ...(python === undefined ? {} : { python }),
    ...(level === undefined ? {} : { logger: await createLogger(process.stderr, level) }),
    env,
    cwd: process.cwd(),
    offline: options.offline === true || isOn(env.RCM_BRIDGE_OFFLINE),
    allowDownload: options.download === true || askOnTerminal,
    allowInstall: options.yes === true || isOn(env.RCM_BRIDGE_YES) || askOnTerminal,
    onNotice: notice => output.say(notice),
  });
  try {
    return await use(bridge);
  } finally {
    await bridge.close();
  }
}

/** What of the log goes to stderr: nothing, unless -v or RCM_BRIDGE_LOG_LEVEL says so. */
function logLevel(verbosity: number, fromEnvironment: string | undefined): LogLevel | undefined {
  if (verbosity > 0) return verbosity > 1 ? 'debug' : 'info';
  if (!fromEnvironment) return undefined;
  const level = logLevels.find(known => known === fromEnvironment);
  if (level) return level;
  const close = nearest(fromEnvironment, logLevels);
  throw new RcmBridgeError('E_USAGE', `RCM_BRIDGE_LOG_LEVEL takes ${logLevels.join(', ')}, not "${fromEnvironment}".`, {
    hint: close ? `Did you mean ${close}?` : 'Remove the variable, or use -v.',
  });
}
