import { existsSync, statfsSync } from 'node:fs';
import { arch, cpus, platform, release, totalmem } from 'node:os';
import { dirname, resolve } from 'node:path';
import type { PythonDescription } from '../../python/index.ts';
import type { Host, Need } from '../../runs/needs.ts';
import type { Command } from '../command.ts';
import { exitCodes } from '../exit-codes.ts';
import { packageVersion } from '../main.ts';
import { pairs, pythonOption, runsDirOption, setOption, text } from '../options.ts';

const gigabyte = 1e9;

export const doctor: Command = {
  command: 'doctor [config]',
  describe: 'Say what is found here, and of what a config needs all that is missing and how to get it',
  options: yargs =>
    runsDirOption(setOption(pythonOption(yargs))).positional('config', {
      type: 'string',
      describe: 'A file or a preset: weights, data, GPUs, packages and disk that it needs',
    }),
  run: async (options, output) => {
    const { describePython, listGpus } = await import('../../python/index.ts');
    const explicit = text(options, 'python') ?? process.env.RCM_BRIDGE_PYTHON;
    const python = await describePython({ env: process.env, cwd: process.cwd(), explicit });
    const runsDir = text(options, 'runs-dir') ?? process.env.RCM_BRIDGE_RUNS_DIR ?? 'runs';
    const disk = statfsSync(existingFolder(resolve(runsDir)));
    const machine = {
      package: packageVersion(),
      node: process.versions.node,
      system: `${platform()} ${release()} ${arch()}`,
      cpus: cpus().length,
      gpus: await listGpus(),
      memoryGb: round(totalmem() / gigabyte),
      freeDiskGb: round((disk.bavail * disk.bsize) / gigabyte),
    };
    const source = text(options, 'config');
    const free = { freeBytes: disk.bavail * disk.bsize, gpus: machine.gpus };
    const needs = source === undefined ? [] : await needsOfConfig(source, pairs(options), { ...free, python });
    const lines = [...describeMachine(machine), ...describeCandidates(python), ...describeNeeds(source, needs)];
    output.result({ ...machine, python, ...(source === undefined ? {} : { needs }) }, lines.join('\n'));
    if (needs.some(need => need.found === null)) return exitCodes.environment;
    if (python.selected) return exitCodes.ok;
    output.say('No Python will do. Make one with: rcm-bridge env setup');
    return exitCodes.environment;
  },
};

/** The folder itself or, where it is yet to be made, the one that it will be made in. */
const existingFolder = (path: string): string => (existsSync(path) ? path : existingFolder(dirname(path)));

async function needsOfConfig(
  source: string,
  set: readonly string[],
  host: Omit<Host, 'env'>,
): Promise<readonly Need[]> {
  const [{ loadConfig }, { needsOf }] = await Promise.all([
    import('../../config/load.ts'),
    import('../../runs/needs.ts'),
  ]);
  const { config } = await loadConfig(source, { cwd: process.cwd(), env: process.env, set });
  return needsOf(config, { ...host, env: process.env });
}

function describeNeeds(source: string | undefined, needs: readonly Need[]): string[] {
  if (source === undefined) return [];
  const missing = needs.filter(({ found }) => found === null).length;
  return [
    '',
    `${source} needs${missing === 0 ? '' : `; ${missing} missing`}`,
    ...needs.map(
      ({ what, found, hint }) => `${found === null ? 'missing' : 'found'.padEnd(7)}     ${what}: ${found ?? hint}`,
    ),
  ];
}

const round = (value: number): number => Math.round(value * 10) / 10;

const describeMachine = (machine: Readonly<Record<string, string | number | readonly string[]>>): string[] =>
  Object.entries(machine).map(([name, value]) => `${name.padEnd(12)}${String(value) || 'none'}`);

const listed = (packages: Readonly<Record<string, string>>, isListed: (name: string) => boolean): string =>
  Object.entries(packages)
    .flatMap(([name, version]) => (isListed(name) ? [`${name} ${version}`] : []))
    .join(', ');

function describeCandidates({ selected, media, candidates, home }: PythonDescription): string[] {
  const isMedia = (name: string): boolean => media.names.includes(name);
  const lines = candidates.map(({ source, executable, version, usable, problem }) => {
    const verdict = usable ? 'usable' : `not usable: ${problem}`;
    return `${source.padEnd(12)}${executable} ${version ?? ''} ${verdict}`.replace(/\s+$/, '');
  });
  return [
    `home        ${home}`,
    ...lines,
    `uses        ${selected ? `${selected.executable} (${listed(selected.packages, name => !isMedia(name))})` : 'none'}`,
    `media       ${media.found ? `${media.found.executable} (${listed(media.found.packages, isMedia)})` : `none. ${media.hint}`}`,
  ];
}
