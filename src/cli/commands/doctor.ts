import { statfsSync } from 'node:fs';
import { arch, cpus, platform, release, totalmem } from 'node:os';
import type { PythonDescription } from '../../python/index.ts';
import type { Command } from '../command.ts';
import { exitCodes } from '../exit-codes.ts';
import { packageVersion } from '../main.ts';
import { pythonOption, text } from '../options.ts';

const gigabyte = 1e9;

export const doctor: Command = {
  command: 'doctor',
  describe: 'Say what is found here: Node, Python, packages, GPUs, disk; and what to do about what is missing',
  options: pythonOption,
  run: async (options, output) => {
    const { describePython, listGpus } = await import('../../python/index.ts');
    const explicit = text(options, 'python') ?? process.env.RCM_BRIDGE_PYTHON;
    const python = await describePython({ env: process.env, cwd: process.cwd(), explicit });
    const disk = statfsSync(process.cwd());
    const machine = {
      package: packageVersion(),
      node: process.versions.node,
      system: `${platform()} ${release()} ${arch()}`,
      cpus: cpus().length,
      gpus: await listGpus(),
      memoryGb: round(totalmem() / gigabyte),
      freeDiskGb: round((disk.bavail * disk.bsize) / gigabyte),
    };
    output.result({ ...machine, python }, [...describeMachine(machine), ...describeCandidates(python)].join('\n'));
    if (python.selected) return exitCodes.ok;
    output.say('No Python will do. Make one with: rcm-bridge env setup');
    return exitCodes.environment;
  },
};

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
