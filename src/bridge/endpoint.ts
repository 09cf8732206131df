import { lstat, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** A private folder with the addresses of one sidecar. */
export interface Endpoint {
  readonly folder: string;
  readonly addresses: { readonly ctl: string; readonly evt: string; readonly blob: string };
  /** Removes the folder. */
  remove(): Promise<void>;
}

const prefix = 'rcm-bridge-';
/** A Unix socket's path has at most 107 bytes; the folder's name and the socket's take some of them. */
const longestParent = 70;

/**
 * Makes a folder that only this user may enter (mkdtemp: 0700) for the sockets of one sidecar: a fresh one each time,
 * because a second bind to the same path silently steals its traffic. The name holds the pid of its owner, so that the
 * folders of dead owners can be swept.
 */
export async function createEndpoint(parent = tmpdir()): Promise<Endpoint> {
  const root = Buffer.byteLength(parent) > longestParent ? '/tmp' : parent;
  await sweep(root);
  const folder = await mkdtemp(join(root, `${prefix}${process.pid}-`));
  const address = (name: string): string => `ipc://${join(folder, name)}`;
  return {
    folder,
    addresses: { ctl: address('ctl'), evt: address('evt'), blob: address('blob') },
    remove: () => rm(folder, { recursive: true, force: true }),
  };
}

/** Removes the folders of owners that are dead. Never fails: others may sweep at the same time. */
async function sweep(root: string): Promise<void> {
  const names = await readdir(root).catch(() => []);
  for (const name of names) {
    const owner = new RegExp(`^${prefix}(\\d+)-[A-Za-z0-9]{6}$`).exec(name)?.[1];
    if (owner === undefined || isAlive(Number(owner))) continue;
    const folder = join(root, name);
    const stats = await lstat(folder).catch(() => undefined);
    if (!stats?.isDirectory() || stats.uid !== process.getuid?.()) continue;
    await rm(folder, { recursive: true, force: true }).catch(() => undefined);
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH';
  }
}
