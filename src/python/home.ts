import { homedir } from 'node:os';
import { join, resolve } from 'node:path';

export type Environment = Readonly<Record<string, string | undefined>>;

/** Folder for what the package keeps between runs: RCM_BRIDGE_HOME, else `rcm-bridge` in the user's cache folder. */
export function managedHome(env: Environment): string {
  if (env.RCM_BRIDGE_HOME) return resolve(env.RCM_BRIDGE_HOME);
  const user = env.HOME ?? homedir();
  if (process.platform === 'darwin') return join(user, 'Library', 'Caches', 'rcm-bridge');
  if (process.platform === 'win32') return join(env.LOCALAPPDATA ?? join(user, 'AppData', 'Local'), 'rcm-bridge');
  return join(env.XDG_CACHE_HOME || join(user, '.cache'), 'rcm-bridge');
}
