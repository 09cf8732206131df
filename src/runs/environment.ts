/** environment.json: what a run was made with, so that it can be made again. */
import { execFile } from 'node:child_process';
import fs from 'node:fs';
import { arch, cpus, platform, release, totalmem } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { packageRoot } from '../package-root.ts';
import type { Ready } from '../protocol/messages.ts';
import { writeJsonAtomic } from './files.ts';

const run = promisify(execFile);
const toolTimeoutMs = 3_000;

export const environmentName = 'environment.json';

export interface EnvironmentSource {
  readonly python: {
    readonly executable: string;
    readonly version: string;
    readonly packages: Readonly<Record<string, unknown>>;
  };
  readonly cwd: string;
  readonly commandLine: readonly string[];
}

/** What is known before the sidecar runs. */
export async function describeEnvironment({
  python,
  cwd,
  commandLine,
}: EnvironmentSource): Promise<Readonly<Record<string, unknown>>> {
  return {
    package: packageVersion(),
    node: process.versions.node,
    python: { executable: python.executable, version: python.version, packages: python.packages },
    system: {
      platform: platform(),
      release: release(),
      arch: arch(),
      cpus: cpus().length,
      cpu: cpus()[0]?.model ?? null,
      memoryBytes: totalmem(),
    },
    commandLine: withoutSecrets(commandLine),
    gitCommit: await toolOutput('git', ['rev-parse', 'HEAD'], cwd),
  };
}

/** Adds what the sidecar said about itself, and writes the file. */
export async function writeEnvironment(
  runDir: string,
  known: Readonly<Record<string, unknown>>,
  ready?: Ready,
): Promise<void> {
  writeJsonAtomic(join(runDir, environmentName), { ...known, ...(ready ? await describeReady(ready) : {}) });
}

async function describeReady(ready: Ready): Promise<Readonly<Record<string, unknown>>> {
  const { torch, cuda, cpuCapability, threads, gpus, packages } = ready;
  const query = ['--query-gpu=driver_version', '--format=csv,noheader'];
  const driver = gpus.length > 0 ? ((await toolOutput('nvidia-smi', query))?.split('\n')[0] ?? null) : null;
  return { torch, cuda, driver, gpus, cpuCapability, threads, packages };
}

async function toolOutput(tool: string, words: readonly string[], cwd?: string): Promise<string | null> {
  try {
    const { stdout } = await run(tool, [...words], { timeout: toolTimeoutMs, ...(cwd === undefined ? {} : { cwd }) });
    return stdout.trim();
  } catch {
    return null;
  }
}

const secretName = /(token|secret|passw|api_?-?key|credential)/i;

/** Words whose name says that they hold a secret, and passwords in addresses, are struck out. */
export function withoutSecrets(words: readonly string[]): readonly string[] {
  return words.map((word, index) => {
    const [name = '', ...value] = word.split('=');
    const previous = words[index - 1] ?? '';
    if (value.length > 0 && secretName.test(name)) return `${name}=***`;
    if (previous.startsWith('--') && !previous.includes('=') && secretName.test(previous)) return '***';
    return word.replace(/\/\/[^/@\s]+@/g, '//***@');
  });
}

function packageVersion(): string {
  const manifest = JSON.parse(fs.readFileSync(join(packageRoot(), 'package.json'), 'utf8')) as { version: string };
  return manifest.version;
}
