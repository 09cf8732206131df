import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { AbortedError, type ErrorCode, RcmBridgeError } from '../errors/index.ts';
import { makeDirectory, writeJsonAtomic } from '../runs/files.ts';
import {
  asPipRequirement,
  isInRange,
  type MediaPackage,
  mediaRequirements,
  type PackageRequirement,
  packageRequirements,
  pythonBelow,
  pythonFrom,
  pythonVersions,
} from './requirements.ts';

/** A first start from a cold disk may take long. */
const probeTimeoutMs = 20_000;

/** What an interpreter says about itself. */
export interface PythonFacts {
  readonly executable: string;
  readonly implementation: string;
  /** `3.11.7` */
  readonly version: string;
  readonly platform: string;
  /** Installed versions of the required packages, of triton and of the media packages. */
  readonly packages: Readonly<Record<string, string>>;
  /** Changes when packages are installed or removed. */
  readonly sitePackages: string | null;
  readonly hasVenv: boolean;
  readonly hasEnsurePip: boolean;
  readonly hasPip: boolean;
}

export type ProbeResult =
  | { readonly usable: true; readonly facts: PythonFacts }
  | {
      readonly usable: false;
      readonly code: ErrorCode;
      readonly reason: string;
      readonly hint: string;
      /** Undefined if the interpreter did not start. */
      readonly facts?: PythonFacts;
    };

/** Runs on every Python from 2.7 on, so that an old one gets a clear answer. */
const script = `
import json, sys
def has(name):
    try:
        import importlib.util
        return importlib.util.find_spec(name) is not None
    except Exception:
        return False
packages = {}
try:
    from importlib import metadata
    for name in sys.argv[1:]:
        try:
            packages[name] = metadata.version(name)
        except Exception:
            pass
except ImportError:
    pass
try:
    import sysconfig
    site = sysconfig.get_paths().get("purelib")
except Exception:
    site = None
try:
    import platform
    implementation = platform.python_implementation()
except Exception:
    implementation = "unknown"
print(json.dumps({
    "executable": sys.executable, "implementation": implementation, "version": "%d.%d.%d" % tuple(sys.version_info[:3]),
    "platform": sys.platform, "packages": packages, "sitePackages": site,
    "hasVenv": has("venv"), "hasEnsurePip": has("ensurepip"), "hasPip": has("pip"),
}))
`;

export interface ProbeOptions {
  /** Where results are kept; without it nothing is kept. */
  readonly home?: string | undefined;
  /** False: any supported Python will do, for making an environment from it. */
  readonly requirePackages?: boolean | undefined;
  /** Media packages that are required, too. */
  readonly needs?: readonly MediaPackage[] | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Asks an interpreter what it is, without importing torch and without writing to it. Answers that pass are kept by
 * path and modification time of the interpreter and of its packages. Never throws but for an abort.
 */
export async function probePython(executable: string, options: ProbeOptions = {}): Promise<ProbeResult> {
  const known = await readKept(executable, options.home);
  const facts = known ?? (await ask(executable, options.signal));
  if (typeof facts === 'string')
    return { usable: false, code: 'E_PYTHON_NOT_FOUND', reason: facts, hint: `Install ${pythonVersions}.` };
  const result = judge(executable, facts, requirementsOf(options));
  if (known === undefined && result.usable) await keep(executable, facts, options.home);
  return result;
}

/** The error for an interpreter that somebody named. */
export const probeError = (executable: string, result: Extract<ProbeResult, { usable: false }>): RcmBridgeError =>
  new RcmBridgeError(result.code, `${executable}: ${result.reason}.`, { hint: result.hint, details: { executable } });

function requirementsOf({ requirePackages = true, needs = [] }: ProbeOptions): readonly PackageRequirement[] {
  const media = mediaRequirements.filter(({ name }) => needs.includes(name));
  return [...(requirePackages ? packageRequirements : []), ...media];
}

function judge(executable: string, facts: PythonFacts, required: readonly PackageRequirement[]): ProbeResult {
  if (facts.implementation !== 'CPython' || !isInRange(facts.version, pythonFrom, pythonBelow)) {
    const reason = `it is ${facts.implementation} ${facts.version}; the sidecar needs ${pythonVersions}`;
    return {
      usable: false,
      code: 'E_PYTHON_VERSION',
      reason,
      hint: 'Name another one with --python, or leave --python out.',
      facts,
    };
  }
  const wrong = required.filter(({ name, from, below }) => {
    const version = facts.packages[name];
    return version === undefined || !isInRange(version, from, below);
  });
  if (wrong.length === 0) return { usable: true, facts };
  const missing = wrong.map(({ name }) =>
    facts.packages[name] === undefined ? name : `${name} (has ${facts.packages[name]})`,
  );
  const words = wrong.map(requirement => `'${asPipRequirement(requirement)}'`).join(' ');
  return {
    usable: false,
    code: 'E_PYTHON_PACKAGES',
    reason: `it lacks ${missing.join(', ')}`,
    hint: `Add them: ${executable} -m pip install ${words}`,
    facts,
  };
}

/** The facts, or why there are none. */
async function ask(executable: string, signal: AbortSignal | undefined): Promise<PythonFacts | string> {
  const answer = await run(executable, ['-I'], signal);
  // Python 2 has no -I.
  const isOld = answer.facts === undefined && /unknown option/i.test(answer.stderr);
  const { facts, error } = isOld ? await run(executable, ['-E', '-s'], signal) : answer;
  return facts ?? whyNot(error);
}

type ProcessError = Error & { readonly code?: unknown; readonly killed?: boolean };

const probedPackages = [...[...packageRequirements, ...mediaRequirements].map(({ name }) => name), 'triton'];

interface Answer {
  readonly facts: PythonFacts | undefined;
  readonly error: ProcessError | null;
  readonly stderr: string;
}

function run(executable: string, flags: readonly string[], signal: AbortSignal | undefined): Promise<Answer> {
  const limits = { timeout: probeTimeoutMs, killSignal: 'SIGKILL', maxBuffer: 1 << 20 } as const;
  return new Promise((settle, reject) => {
    const child = execFile(
      executable,
      [...flags, '-c', script, ...probedPackages],
      { ...limits, ...(signal ? { signal } : {}) },
      (error, stdout, stderr) => {
        if (signal?.aborted) return reject(new AbortedError(signal.reason));
        settle({ facts: parseFacts(stdout), error, stderr });
      },
    );
    child.stdin?.end();
  });
}

function parseFacts(stdout: string): PythonFacts | undefined {
  try {
    const facts = JSON.parse(stdout.trim().split('\n').at(-1) ?? '') as PythonFacts;
    return typeof facts.version === 'string' && typeof facts.packages === 'object' ? facts : undefined;
  } catch {
    return undefined;
  }
}

function whyNot(error: ProcessError | null): string {
  if (error?.code === 'ENOENT') return 'there is no such interpreter';
  if (error?.code === 'EACCES') return 'it cannot be executed';
  if (error?.killed) return `it did not answer within ${probeTimeoutMs / 1000} s`;
  return 'it does not behave like Python';
}

const keptFile = (executable: string, home: string): string =>
  join(home, 'probes', `${createHash('sha256').update(executable).digest('hex').slice(0, 32)}.json`);

async function stampOf(executable: string, facts: PythonFacts): Promise<string> {
  const times = [executable, ...(facts.sitePackages === null ? [] : [facts.sitePackages])].map(
    async path => (await stat(path)).mtimeMs,
  );
  return [...(await Promise.all(times)), ...probedPackages].join(' ');
}

async function readKept(executable: string, home: string | undefined): Promise<PythonFacts | undefined> {
  if (home === undefined) return undefined;
  try {
    const kept = JSON.parse(await readFile(keptFile(executable, home), 'utf8')) as {
      stamp: string;
      facts: PythonFacts;
    };
    return kept.stamp === (await stampOf(executable, kept.facts)) ? kept.facts : undefined;
  } catch {
    return undefined;
  }
}

async function keep(executable: string, facts: PythonFacts, home: string | undefined): Promise<void> {
  if (home === undefined) return;
  try {
    makeDirectory(join(home, 'probes'));
    writeJsonAtomic(keptFile(executable, home), { stamp: await stampOf(executable, facts), facts });
  } catch {
    // Only speed is lost: the next start asks again.
  }
}
