/**
 * The API: `createBridge()`. Everything that costs start-up time (schemas, sockets, YAML) is loaded by the method that
 * needs it, so that importing the package loads and opens nothing.
 */
import { resolve } from 'node:path';
import type { RcmConfigInput } from '../config/types.ts';
import type { BuildDataOptions, BuiltSet } from '../data/build.ts';
import type { EncodeDataOptions, EncodedSet } from '../data/encode.ts';
import { AbortedError, throwIfAborted } from '../errors/index.ts';
import { silentLogger } from '../logging/logger.ts';
import type { Plan } from '../plan/plan.ts';
import type { WeightsInspection } from '../protocol/messages.ts';
import type { FetchOptions, FetchResult } from '../weights/fetch.ts';
import type { ConvertOptions, WeightsConversion, WeightsOptions, WeightsVerification } from '../weights/jobs.ts';
import type { WeightsList } from '../weights/list.ts';
import type { CheckOptions, ConfigCheck } from './check-config.ts';
import type { BridgeContext, Interpreter } from './context.ts';
import type { DryRun } from './dry-run.ts';
import type { RunHandle } from './handle.ts';
import type { Launcher } from './launchers/launcher.ts';
import { localLauncher } from './launchers/local.ts';
import type { BridgeOptions, ResumeOptions, RunOptions, SampleOptions, SampleResult } from './options.ts';
import type { OwnedRun } from './owned-run.ts';
import type { PlanOptions } from './plan-run.ts';
import type { Job, RunRecord } from './record.ts';

/** Starts, follows and reports runs. Close it, so that the runs it started end with a checkpoint. */
export interface Bridge extends AsyncDisposable {
  /**
   * Distils a teacher. Resolves when the config is valid, the run directory exists and the job has passed its checks.
   * @param config a preset, a path of a file, or an object; default `digits-rcm`
   * @throws RcmBridgeError E_CONFIG_*, E_RUNS_DIR, E_RUN_EXISTS, E_PYTHON_*, E_WEIGHTS_*, E_TEACHER_CHECK, E_ABORTED, ...
   */
  distill(config?: string | RcmConfigInput, options?: RunOptions): Promise<RunHandle>;
  /** Trains a small teacher by flow matching; otherwise as `distill`. */
  pretrain(config?: string | RcmConfigInput, options?: RunOptions): Promise<RunHandle>;
  /** What `distill` or `pretrain` would do, after all checks that need no sidecar. Creates nothing. */
  dryRun(job: Job, config?: string | RcmConfigInput, options?: RunOptions): Promise<DryRun>;
  /**
   * What a distillation takes: memory by part, time, data, the fewest GPUs, what to change where it does not fit. For
   * the GPUs of this machine, or for those named. Starts and installs nothing, and needs neither GPU nor weights.
   * @throws E_CONFIG_*, E_NETWORK_*, E_USAGE, E_ABORTED
   */
  plan(config?: string | RcmConfigInput, options?: PlanOptions): Promise<Plan>;
  /**
   * Checks a config, and the headers of the weight files it names against its network. Starts no run, installs and
   * writes nothing; weights that are missing or do not fit are part of the result.
   * @throws E_CONFIG_*, E_NETWORK_*, E_SIDECAR_*, E_ABORTED
   */
  check(config?: string | RcmConfigInput, options?: CheckOptions): Promise<ConfigCheck>;
  /**
   * Goes on with a run (an id, the start of one, a path, or `last`). A complete one is only opened. With `fromStep` or
   * `set` a child run goes on from the checkpoint, and the run itself stays as it is.
   * @throws E_RUN_NOT_FOUND, E_RUN_BUSY, E_CHECKPOINT_*, E_TORCH_DRIFT, E_CONFIG_FIXED, E_CONFIG_*, E_PYTHON_*
   */
  resume(run: string, options?: ResumeOptions): Promise<RunHandle>;
  /** Draws samples from a run's export, an export folder, a weights file with its sampler.json, or `builtin:NAME`. */
  sample(source: string, options?: SampleOptions): Promise<SampleResult>;
  /** Writes the HTML report again (of several runs: into the first one's folder); its absolute path. */
  report(...runs: readonly string[]): Promise<string>;
  readonly runs: {
    /** A run of any process, live or over. */
    open(run: string): Promise<RunHandle>;
    /** Newest first. */
    list(): Promise<readonly RunRecord[]>;
  };
  /** Sets of training data in the public layout (docs/data.md). Each call goes on where an earlier one stopped. */
  readonly data: {
    /**
     * Has the teacher of a config sample a set from prompts.
     * @throws E_CONFIG_*, E_USAGE, E_CONSENT, E_DISK_FULL, E_GPU, E_WEIGHTS_*, E_PYTHON_*, E_RUN_BUSY, E_ABORTED
     */
    build(config: string | RcmConfigInput, options: BuildDataOptions): Promise<BuiltSet>;
    /** Encodes captioned pictures or videos of a folder for the model of a config; otherwise as `build`. */
    encode(folder: string, config: string | RcmConfigInput, options?: EncodeDataOptions): Promise<EncodedSet>;
  };
  /** Weight files of known networks: a locator is a path, `builtin:NAME` or `hf:OWNER/NAME@REVISION`. */
  readonly weights: {
    /** The networks of this version, where their weights are published, and copies on this machine. */
    list(): Promise<WeightsList>;
    /**
     * Fetches `hf:OWNER/NAME` into the hub's cache on this machine, with the consent of `allowDownload`.
     * @throws E_CONSENT, E_OFFLINE, E_HUB_*, E_DISK_FULL, E_PYTHON_*
     */
    fetch(locator: string, options?: FetchOptions): Promise<FetchResult>;
    /** What they are, from their headers, and whether they fit a network. Takes a moment at any size. */
    inspect(weights: string, options?: WeightsOptions): Promise<WeightsInspection>;
    /** Reads all of them. @throws E_WEIGHTS_* with what is wrong */
    verify(weights: string, options?: WeightsOptions): Promise<WeightsVerification>;
    /** Writes them in another layout, one tensor at a time. @throws E_WEIGHTS_*, E_DISK_FULL */
    convert(weights: string, options: ConvertOptions): Promise<WeightsConversion>;
  };
  /** Checkpoints and stops the runs this bridge started and waits for their end; `detached` ones go on. */
  close(): Promise<void>;
}

/** Parts that tests replace. */
export interface BridgeParts {
  readonly launch?: Launcher;
  readonly findPython?: BridgeContext['findPython'];
}

const defaultConfig = 'digits-rcm';

/**
 * @example
 * ```ts
 * const bridge = await createBridge({ runsDir: '/data/runs' });
 * try {
 *   const run = await bridge.distill('digits-rcm', { set: { 'schedule.steps': 500 } });
 *   for await (const event of run) if (event.type === 'metric') console.log(event.step, event.values['scm/loss']);
 *   console.log((await run.result()).state);
 * } finally {
 *   await bridge.close();
 * }
 * ```
 * @throws AbortedError
 */
export function createBridge(options: BridgeOptions = {}): Promise<Bridge> {
  return openBridge(options, {});
}

/** `createBridge` with replaceable parts. */
export async function openBridge(options: BridgeOptions, parts: BridgeParts): Promise<Bridge> {
  throwIfAborted(options.signal);
  const { env = process.env } = options;
  const cwd = resolve(options.cwd ?? process.cwd());
  const context: BridgeContext = {
    cwd,
    env,
    runsDir: resolve(cwd, options.runsDir ?? 'runs'),
    logger: options.logger ?? silentLogger,
    options,
    launch: parts.launch ?? localLauncher(),
    findPython: parts.findPython ?? pythonFinder(options, cwd, env),
    owned: new Set<OwnedRun>(),
    notice: text => options.onNotice?.(text),
    commandLine: process.argv,
  };
  let closed = false;
  const start = async (job: Job, config: string | RcmConfigInput, runOptions: RunOptions): Promise<RunHandle> => {
    refuseClosed(closed);
    const { startRun } = await import('./start-run.ts');
    return startRun(context, job, config, runOptions);
  };
  const open = async (name: string): Promise<RunHandle> => {
    const [{ findRun }, { openRemoteRun }] = await Promise.all([import('./store.ts'), import('./remote-run.ts')]);
    const { dir } = findRun(context.runsDir, name, cwd);
    const own = [...context.owned].find(({ handle }) => handle.dir === dir);
    return own?.handle ?? openRemoteRun(dir, { signal: options.signal });
  };
  const close = async (): Promise<void> => {
    closed = true;
    const running = [...context.owned];
    await Promise.all(running.map(({ handle, over }) => Promise.all([handle.cancel(), over])));
  };
  return {
    distill: (config = defaultConfig, runOptions = {}) => start('distill', config, runOptions),
    pretrain: (config = defaultConfig, runOptions = {}) => start('pretrain', config, runOptions),
    dryRun: async (job, config = defaultConfig, runOptions = {}) => {
      const [{ prepareRun, resolveConfig }, { describeDryRun }] = await Promise.all([
        import('./start-run.ts'),
        import('./dry-run.ts'),
      ]);
      const resolved = await resolveConfig(context, job, config, runOptions);
      return describeDryRun(context, await prepareRun(context, job, resolved, runOptions), runOptions);
    },
    plan: async (config = defaultConfig, planOptions = {}) => {
      const { planConfig } = await import('./plan-run.ts');
      return planConfig(context, config, planOptions);
    },
    check: async (config = defaultConfig, checkOptions = {}) => {
      const { checkConfig } = await import('./check-config.ts');
      const findPython = parts.findPython ?? pythonThatIsThere(options, cwd, env);
      return checkConfig({ ...context, findPython }, config, checkOptions);
    },
    resume: async (name, resumeOptions = {}) => {
      refuseClosed(closed);
      const { resumeRun } = await import('./resume-run.ts');
      return resumeRun(context, name, resumeOptions);
    },
    sample: async (source, sampleOptions = {}) => {
      refuseClosed(closed);
      const { drawSamples } = await import('./sample-job.ts');
      return drawSamples(context, source, sampleOptions);
    },
    report: async (...names) => {
      const [{ findRun }, { writeReport }] = await Promise.all([import('./store.ts'), import('../report/html.ts')]);
      return writeReport(names.map(name => findRun(context.runsDir, name, cwd).dir));
    },
    runs: {
      open,
      list: async () => {
        const { listRuns } = await import('./store.ts');
        return listRuns(context.runsDir).map(({ record }) => record);
      },
    },
    data: {
      build: async (config, buildOptions) => {
        refuseClosed(closed);
        const { buildData } = await import('../data/build.ts');
        return buildData(context, config, buildOptions);
      },
      encode: async (folder, config, encodeOptions = {}) => {
        refuseClosed(closed);
        const { encodeData } = await import('../data/encode.ts');
        return encodeData(context, folder, config, encodeOptions);
      },
    },
    weights: {
      list: async () => {
        const { listWeights } = await import('../weights/list.ts');
        return listWeights(env);
      },
      fetch: async (locator, fetchOptions = {}) => {
        refuseClosed(closed);
        const { fetchWeights } = await import('../weights/fetch.ts');
        return fetchWeights(context, locator, fetchOptions);
      },
      inspect: async (weights, weightsOptions = {}) => {
        refuseClosed(closed);
        const { inspectWeights } = await import('../weights/jobs.ts');
        return inspectWeights(context, weights, weightsOptions);
      },
      verify: async (weights, weightsOptions = {}) => {
        refuseClosed(closed);
        const { verifyWeights } = await import('../weights/jobs.ts');
        return verifyWeights(context, weights, weightsOptions);
      },
      convert: async (weights, convertOptions) => {
        refuseClosed(closed);
        const { convertWeights } = await import('../weights/jobs.ts');
        return convertWeights(context, weights, convertOptions);
      },
    },
    close,
    [Symbol.asyncDispose]: close,
  };
}

function refuseClosed(closed: boolean): void {
  if (closed) throw new AbortedError(undefined, 'This bridge is closed.');
}

/** Looks for Python once; a failure is not remembered. */
function pythonFinder(options: BridgeOptions, cwd: string, env: NodeJS.ProcessEnv): BridgeContext['findPython'] {
  const known = new Map<string, Promise<Interpreter>>();
  return (signal, needs = []) => {
    const key = needs.join(' ');
    const found = known.get(key);
    if (found) return found;
    const search = import('../python/provision.ts')
      .then(({ ensurePython }) =>
        ensurePython({
          explicit: options.python,
          env,
          cwd,
          consent: options.allowInstall ?? false,
          offline: options.offline,
          onProgress: options.onNotice,
          needs,
          signal,
        }),
      )
      .catch(error => {
        known.delete(key);
        throw error;
      });
    known.set(key, search);
    return search;
  };
}

/** The Python there is; unlike `pythonFinder` it never makes an environment. */
const pythonThatIsThere =
  ({ python }: BridgeOptions, cwd: string, env: NodeJS.ProcessEnv): BridgeContext['findPython'] =>
  async (signal, needs) => {
    const { resolvePython } = await import('../python/find.ts');
    return resolvePython({ explicit: python, env, cwd, needs, signal });
  };
