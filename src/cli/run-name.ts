import { join, resolve } from 'node:path';

/** How a later command names a run: by its id where it will look for it, else by its path. */
export function nameOfRun(id: string, dir: string, env: NodeJS.ProcessEnv = process.env): string {
  if (dir === join(resolve(env.RCM_BRIDGE_RUNS_DIR || 'runs'), id)) return id;
  return /^[\w./+:@-]+$/.test(dir) ? dir : `'${dir.replaceAll("'", "'\\''")}'`;
}
