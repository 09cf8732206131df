import { createInterface } from 'node:readline/promises';
import type { Bridge } from '../index.ts';
import type { Options } from './command.ts';
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
  const agreed = options.yes === true || isOn(env.RCM_BRIDGE_YES);
  const bridge = await createBridge({
    ...(runsDir === undefined ? {} : { runsDir }),
    ...(python === undefined ? {} : { python }),
    env,
    cwd: process.cwd(),
    offline: options.offline === true || isOn(env.RCM_BRIDGE_OFFLINE),
    allowInstall: agreed || (question => ask(question)),
    onNotice: notice => output.say(notice),
  });
  try {
    return await use(bridge);
  } finally {
    await bridge.close();
  }
}

const isOn = (value: string | undefined): boolean => value !== undefined && /^(1|true|yes)$/i.test(value);

async function ask(question: string): Promise<boolean> {
  if (!process.stdin.isTTY || !process.stderr.isTTY) return false;
  const terminal = createInterface({ input: process.stdin, output: process.stderr });
  try {
    return /^y(es)?$/i.test((await terminal.question(`${question} [y/N] `)).trim());
  } finally {
    terminal.close();
  }
}
