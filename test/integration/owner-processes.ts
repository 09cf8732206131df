import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Bridge, createBridge } from '../../src/index.ts';
import { readRecord } from '../../src/runs/record.ts';
import { type CliOptions, type CliResult, runCli, temporaryFolder } from '../cli.ts';
import { holdsWithin, processLives } from './fake-sidecar.ts';
import { type ScriptedJob, writeScriptedPython } from './scripted-python.ts';

/** Runs whose owners are other processes, below one temporary folder. */
export interface OwnerProcesses {
  readonly folder: string;
  readonly runsDir: string;
  /** Path of an interpreter whose sidecar does what the script says. */
  python(script: ScriptedJob): string;
  open(script: ScriptedJob): Promise<Bridge>;
  cli(words: readonly string[], script: ScriptedJob, options?: Pick<CliOptions, 'onSpawn'>): Promise<CliResult>;
  /** The folders below `runsDir`. */
  runs(): readonly string[];
  /** Ends all owners and removes the folder. */
  clean(): Promise<void>;
}

export async function ownerProcesses(): Promise<OwnerProcesses> {
  const folder = await temporaryFolder();
  const runsDir = join(folder.path, 'runs');
  let interpreters = 0;
  const python = (script: ScriptedJob): string => {
    interpreters += 1;
    return writeScriptedPython(join(folder.path, `python-${interpreters}`), script);
  };
  const runs = (): readonly string[] =>
    existsSync(runsDir) ? readdirSync(runsDir).map(name => join(runsDir, name)) : [];
  return {
    folder: folder.path,
    runsDir,
    python,
    open: script =>
      createBridge({
        cwd: folder.path,
        runsDir,
        python: python(script),
        env: { RCM_BRIDGE_HOME: join(folder.path, 'home') },
      }),
    cli: (words, script, options = {}) =>
      runCli(words, { cwd: folder.path, env: { RCM_BRIDGE_PYTHON: python(script) }, ...options }),
    runs,
    clean: async () => {
      for (const runDir of runs()) await endOwner(runDir);
      await folder.remove();
    },
  };
}

export const ownerOf = (runDir: string): number => readRecord(runDir)?.owner.pid ?? 0;

/** Owners outlive the test that started them: they are ended by pid, never this process. */
async function endOwner(runDir: string): Promise<void> {
  const pid = ownerOf(runDir);
  if (pid <= 1 || pid === process.pid || !processLives(pid)) return;
  process.kill(pid, 'SIGKILL');
  await holdsWithin(() => !processLives(pid), 2_000);
}

/** Field 6 of /proc/PID/stat (Linux). */
export function sessionOf(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[3]);
}
