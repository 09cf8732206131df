import { spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fixtures, testPython } from '../python.ts';
import { holdsWithin, processLives, type Script, startBody } from './fake-sidecar.ts';

/** Living processes of a group (Linux). */
export function groupMembers(group: number): number[] {
  return readdirSync('/proc')
    .filter(name => /^\d+$/.test(name))
    .map(Number)
    .filter(pid => processLives(pid) && groupOf(pid) === group);
}

function groupOf(pid: number): number {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return Number(text.slice(text.lastIndexOf(')') + 2).split(' ')[2]);
  } catch {
    return -1;
  }
}

/**
 * Starts a Node process with a sidecar, SIGKILLs Node `afterMs` later and says how long (ms) processes of the sidecar's
 * group lived on, at most `limitMs`.
 */
export async function killParent(script: Script, afterMs: number, limitMs = 5_000): Promise<number> {
  const folder = mkdtempSync(join(tmpdir(), 'rcm-test-'));
  const launchFile = join(fixtures, 'fake_sidecar.py');
  const start = startBody(folder, script);
  const argument = JSON.stringify({ python: testPython(), launchFile, cwd: folder, start });
  const parent = spawn(process.execPath, [join(fixtures, 'node-parent.mjs'), argument], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  try {
    const pid = await new Promise<number>((resolve, reject) => {
      parent.stdout.once('data', (line: Buffer) => resolve(Number(line.toString())));
      parent.once('exit', code => reject(new Error(`the parent ended with ${code}`)));
    });
    await new Promise(resolve => setTimeout(resolve, afterMs));
    if (groupMembers(pid).length < 2) throw new Error('expected the sidecar and its watcher');
    const killedAt = performance.now();
    parent.kill('SIGKILL');
    await holdsWithin(() => groupMembers(pid).length === 0, limitMs);
    return performance.now() - killedAt;
  } finally {
    parent.kill('SIGKILL');
    rmSync(folder, { recursive: true, force: true });
  }
}
