/** What all jobs of one bridge share, with its defaults filled in. */
import { join } from 'node:path';
import type { RcmConfig } from '../config/types.ts';
import type { Logger } from '../logging/logger.ts';
import { managedHome } from '../python/home.ts';
import type { MediaPackage } from '../python/requirements.ts';
import type { Launcher } from './launchers/launcher.ts';
import type { BridgeOptions } from './options.ts';
import type { OwnedRun } from './owned-run.ts';

/** An interpreter that passed the probe. */
export interface Interpreter {
  readonly executable: string;
  readonly version: string;
  readonly packages: Readonly<Record<string, unknown>>;
}

export interface BridgeContext {
  readonly runsDir: string;
  readonly cwd: string;
  readonly env: NodeJS.ProcessEnv;
  readonly logger: Logger;
  readonly options: BridgeOptions;
  readonly launch: Launcher;
  /** Finds Python, or makes an environment where that is allowed; with `needs`, one that has those media packages. */
  readonly findPython: (signal: AbortSignal | undefined, needs?: readonly MediaPackage[]) => Promise<Interpreter>;
  /** Runs this bridge owns and that are not over. */
  readonly owned: Set<OwnedRun>;
  readonly notice: (text: string) => void;
  /** What the process was started with, for environment.json. */
  readonly commandLine: readonly string[];
}

/** The media packages that a run with these data imports. */
export const neededPackages = ({ data }: Pick<RcmConfig, 'data'>): readonly MediaPackage[] =>
  data.kind === 'latentShards' ? ['webdataset'] : [];

export const cacheDir = (env: NodeJS.ProcessEnv): string => join(managedHome(env), 'cache');

/** Variables that the caller gave and the sidecar has to see too. */
export const sidecarVariables = (env: NodeJS.ProcessEnv): Readonly<Record<string, string>> => ({
  RCM_BRIDGE_HOME: managedHome(env),
});

/** One signal for several; undefined when there is none. */
export function anySignal(...signals: readonly (AbortSignal | undefined)[]): AbortSignal | undefined {
  const given = signals.filter(signal => signal !== undefined);
  return given.length > 1 ? AbortSignal.any(given) : given[0];
}
