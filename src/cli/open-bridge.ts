import type { Bridge } from '../index.ts';
import type { Options } from './command.ts';
import { askOnTerminal, isOn } from './consent.ts';
import { text } from './options.ts';
import type { Output } from './output.ts';

/**
 * The API as the command line uses it: flags before RCM_BRIDGE_* variables before defaults. Without an environment
 * a terminal is asked once; without a terminal `--yes` has to agree, else the command ends with E_CONSENT.
 */
export async function withBridge<T>(options: Options, output: Output, use: (bridge: Bridge) => Promise<T>): Promise<T> {
  const [{ createBridge }, { createLogger }] = await Promise.all([
    import('../index.ts'),
    import('../logging/logger.ts'),
  ]);
  const env = process.env;
  const runsDir = text(options, 'runs-dir') ?? env.RCM_BRIDGE_RUNS_DIR;
  const python = text(options, 'python') ?? env.RCM_BRIDGE_PYTHON;
  const bridge = await createBridge({
    ...(runsDir === undefined ? {} : { runsDir }),
    ...(python === undefined ? {} : { python }),
    ...(output.verbosity > 0
      ? { logger: await createLogger(process.stderr, output.verbosity > 1 ? 'debug' : 'info') }
      : {}),
    env,
    cwd: process.cwd(),
    offline: options.offline === true || isOn(env.RCM_BRIDGE_OFFLINE),
    allowInstall: options.yes === true || isOn(env.RCM_BRIDGE_YES) || askOnTerminal,
    onNotice: notice => output.say(notice),
  });
  try {
    return await use(bridge);
  } finally {
    await bridge.close();
  }
}
