import { existsSync, statSync } from 'node:fs';
import { delimiter, join, resolve } from 'node:path';
import { RcmBridgeError } from '../errors/index.ts';
import { type Environment, managedHome } from './home.ts';
import { listManaged } from './managed.ts';
import { type ProbeResult, probeError, probePython } from './probe.ts';
import type { MediaPackage } from './requirements.ts';

export type PythonSource = 'explicit' | '.venv' | 'VIRTUAL_ENV' | 'CONDA_PREFIX' | 'managed' | 'path';

/** An interpreter that can run the sidecar. */
export interface PythonEnvironment {
  /** Absolute path. */
  readonly executable: string;
  readonly version: string;
  /** Versions of the required packages, and of triton and the media packages where they are installed. */
  readonly packages: Readonly<Record<string, string>>;
  readonly source: PythonSource;
}

export interface FindPythonOptions {
  /** `--python` or `createBridge({ python })`; `auto` and undefined leave it to RCM_BRIDGE_PYTHON, then to the search. */
  readonly explicit?: string | undefined;
  readonly env: Environment;
  readonly cwd: string;
  /** Default: `managedHome(env)`. */
  readonly home?: string | undefined;
  /** False: any supported Python will do (`doctor --deep`, the interactive prompt). */
  readonly requirePackages?: boolean | undefined;
  /** Media packages that the command at hand imports: only an interpreter that has them will do. */
  readonly needs?: readonly MediaPackage[] | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** One place that was looked at. */
export interface PythonCandidate {
  readonly source: PythonSource;
  readonly executable: string;
  readonly result: ProbeResult;
}

export interface PythonSearch {
  /** The first that passes, if any. */
  readonly found?: PythonEnvironment;
  /** Those that were probed, in order, up to the one that passed; with `all` every one. */
  readonly candidates: readonly PythonCandidate[];
}

/**
 * The interpreter to use; nothing is installed.
 *
 * @throws RcmBridgeError E_PYTHON_NOT_FOUND, E_PYTHON_VERSION or E_PYTHON_PACKAGES.
 */
export async function resolvePython(options: FindPythonOptions): Promise<PythonEnvironment> {
  const { found, candidates } = await searchPython(options);
  if (found) return found;
  const first = candidates[0];
  if (first?.source === 'explicit' && !first.result.usable) throw probeError(first.executable, first.result);
  const looked = candidates.map(
    ({ executable, result }) => `${executable}: ${result.usable ? 'usable' : result.reason}`,
  );
  const { needs = [] } = options;
  const other = needs.length > 0 ? (await searchPython({ ...options, needs: [] })).found : undefined;
  if (other) throw missingMedia(needs, other, candidates);
  throw new RcmBridgeError('E_PYTHON_NOT_FOUND', 'No Python on this machine has what the sidecar needs.', {
    hint: `Make one with: rcm-bridge env setup${needs.length > 0 ? ' --with media' : ''}`,
    details: { candidates: looked },
  });
}

/** The error where `other` would do but for the media packages, and nothing else has them. */
export function missingMedia(
  needs: readonly MediaPackage[],
  other: PythonEnvironment | undefined,
  candidates: readonly PythonCandidate[],
): RcmBridgeError {
  const result = candidates.find(({ executable }) => executable === other?.executable)?.result;
  const setup = 'rcm-bridge env setup --with media';
  // One's own environment is not ours to write to.
  const isOwn = other !== undefined && other.source !== 'managed' && result?.usable === false;
  return new RcmBridgeError('E_PYTHON_PACKAGES', `No Python on this machine has ${needs.join(', ')}.`, {
    hint: isOwn ? `${result.hint}, or make an environment with them: ${setup}` : `Add what is missing with: ${setup}`,
  });
}

/** Looks at the interpreters in the order of use. With `all` it goes on after the first that passes. */
export async function searchPython(options: FindPythonOptions & { readonly all?: boolean }): Promise<PythonSearch> {
  const home = options.home ?? managedHome(options.env);
  const candidates: PythonCandidate[] = [];
  let found: PythonEnvironment | undefined;
  for (const { source, executable } of placesToLook({ ...options, home })) {
    const result = await probePython(executable, {
      home,
      requirePackages: options.requirePackages,
      needs: options.needs,
      signal: options.signal,
    });
    candidates.push({ source, executable, result });
    if (!result.usable) continue;
    found ??= { executable, version: result.facts.version, packages: result.facts.packages, source };
    if (!options.all) break;
  }
  return { candidates, ...(found ? { found } : {}) };
}

type Place = Pick<PythonCandidate, 'source' | 'executable'>;

function placesToLook(options: FindPythonOptions & { readonly home: string }): readonly Place[] {
  const { env, cwd, home } = options;
  const named = namedInterpreter(options);
  if (named !== undefined) return [{ source: 'explicit', executable: absoluteInterpreter(named, env, cwd) }];
  const inFolder = (source: PythonSource, folder: string | undefined): readonly Place[] => {
    const executable = folder ? interpreterIn(resolve(cwd, folder)) : undefined;
    return executable === undefined ? [] : [{ source, executable }];
  };
  const system = onPath('python3', env);
  return [
    ...inFolder('.venv', '.venv'),
    ...inFolder('VIRTUAL_ENV', env.VIRTUAL_ENV),
    ...inFolder('CONDA_PREFIX', env.CONDA_PREFIX),
    ...listManaged(home).map(({ executable }): Place => ({ source: 'managed', executable })),
    ...(system === undefined ? [] : [{ source: 'path' as const, executable: system }]),
  ];
}

/** What `--python` or RCM_BRIDGE_PYTHON names, or undefined when the search decides. */
export function namedInterpreter({ explicit, env }: Pick<FindPythonOptions, 'explicit' | 'env'>): string | undefined {
  const named = explicit || env.RCM_BRIDGE_PYTHON;
  return named && named !== 'auto' ? named : undefined;
}

/** A path, the folder of an environment, or a name on PATH. */
function absoluteInterpreter(named: string, env: Environment, cwd: string): string {
  if (!/[\\/]/.test(named)) return onPath(named, env) ?? named;
  const path = resolve(cwd, named);
  const isFolder = statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false;
  return (isFolder ? interpreterIn(path) : undefined) ?? path;
}

function interpreterIn(folder: string): string | undefined {
  const names = process.platform === 'win32' ? ['Scripts/python.exe', 'python.exe'] : ['bin/python3', 'bin/python'];
  return names.map(name => join(folder, name)).find(path => existsSync(path));
}

/** The first executable of this name on PATH. */
export function onPath(name: string, env: Environment): string | undefined {
  const file = process.platform === 'win32' ? `${name}.exe` : name;
  return (env.PATH ?? '')
    .split(delimiter)
    .filter(folder => folder !== '')
    .map(folder => join(resolve(folder), file))
    .find(path => statSync(path, { throwIfNoEntry: false })?.isFile() ?? false);
}
