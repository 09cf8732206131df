/** What callers may ask of the API. */
import type { Logger } from '../logging/logger.ts';
import type { WeightsProgress } from '../weights/jobs.ts';
import type { RunHandle } from './handle.ts';

export interface BridgeOptions {
  /** Folder of the runs. Default `runs` in `cwd`. */
  readonly runsDir?: string;
  /** An interpreter, or `auto` (default): the first that has what the sidecar needs. */
  readonly python?: string;
  /** Silent by default; pino's loggers fit. */
  readonly logger?: Logger;
  /** Stops all runs this bridge started, but those that are `detached`, and ends its waiting. */
  readonly signal?: AbortSignal;
  /** Relative paths are relative to this folder. Default: the working directory. */
  readonly cwd?: string;
  /** Default: `process.env`. */
  readonly env?: NodeJS.ProcessEnv;
  /** May a Python environment be made when none will do? A function is asked with size and place. Default: no. */
  readonly allowInstall?: boolean | ((question: string) => Promise<boolean>);
  /** May model files be fetched? A function is asked with name, size, place and licence. Default: no. */
  readonly allowDownload?: boolean | ((question: string) => Promise<boolean>);
  /** Install and download nothing, whatever else is allowed. */
  readonly offline?: boolean;
  /** Sentences for people, such as what is being installed. */
  readonly onNotice?: (notice: string) => void;
}

export interface RunOptions {
  /** Config keys: `['schedule.steps=500']`, values read as YAML, or `{ 'schedule.steps': 500 }`. */
  readonly set?: readonly string[] | Readonly<Record<string, unknown>>;
  /** Total training steps, like `schedule.steps`. */
  readonly steps?: number;
  /** Processes on this machine, each with a GPU of its own unless `compute.device` is cpu: `compute.gpusPerNode`. */
  readonly gpus?: number;
  /** Machines: `compute.nodes`. The same run is started on each of them, with `rendezvous` and `nodeRank`. */
  readonly nodes?: number;
  /** How processes are started: `compute.launcher`. */
  readonly launcher?: 'auto' | 'local' | 'torchrun' | 'slurm';
  /** Address of the machine that leads a run on several, `HOST:PORT`; it listens there. */
  readonly rendezvous?: string;
  /** Which of the machines this is, from 0, which leads. Default within a job of Slurm: SLURM_NODEID. */
  readonly nodeRank?: number;
  /** With `launcher: 'slurm'`: options of sbatch, such as `partition=gpu` or `exclusive`. */
  readonly slurm?: readonly string[];
  /** Name in the run id and in reports, like `name`. */
  readonly name?: string;
  /** Folder of this run, instead of one below `runsDir`. */
  readonly runDir?: string;
  /** When `runDir` holds a run: refuse (default) or go on with it. */
  readonly ifExists?: 'error' | 'resume';
  /** Two steps of each phase, a checkpoint, a sample and an evaluation of 8 samples; gates are not judged. */
  readonly smoke?: boolean;
  /** Start although the plan says that it does not fit into the GPUs' memory. */
  readonly ignorePlan?: boolean;
  /**
   * The run gets an owner process of its own that goes on when this one ends; `bridge.close()` leaves it alone. The
   * handle follows it through its folder. Signals count until it is accepted; then only `cancel()` stops it.
   */
  readonly detached?: boolean;
  /** Aborting stops the run after a checkpoint; `result()` then rejects with E_ABORTED. */
  readonly signal?: AbortSignal;
  /** Called as soon as the run directory exists, before the job has passed its checks, e.g. to stop it on Ctrl-C. */
  readonly onCreated?: (run: RunHandle) => void;
}

/** With `fromStep` or `set` a child run goes on from a checkpoint, and the run itself stays as it is. */
export interface ResumeOptions {
  /** Go on with another torch version; the result will differ from an uninterrupted run. */
  readonly allowDrift?: boolean;
  /** The step of the checkpoint that a child run goes on from. Default, with `set`: the newest. */
  readonly fromStep?: number;
  /** Config keys of the child run, as in `RunOptions`; only those that may change on resume. */
  readonly set?: readonly string[] | Readonly<Record<string, unknown>>;
  /** These as in `RunOptions`. */
  readonly rendezvous?: string;
  readonly nodeRank?: number;
  readonly detached?: boolean;
  readonly signal?: AbortSignal;
  readonly onCreated?: (run: RunHandle) => void;
}

export interface SampleOptions {
  /** Sampler steps. Default: 4 for a student, the sampler's own for a teacher. */
  readonly steps?: number;
  /** Default 10, or 1 for each prompt. */
  readonly num?: number;
  /** Default 0; of several samples of a prompt, the first one's. */
  readonly seed?: number;
  /** Class; without it the classes take turns. */
  readonly label?: number;
  /** For models with a text encoder. */
  readonly prompt?: string;
  /** More of them: a list, or a file with one prompt a line, or `builtin:video-8`, `builtin:image-8`. */
  readonly prompts?: readonly string[] | string;
  /** Folder or hf: locator of the text encoder and VAE. Default: that of the run, or the one beside the weights. */
  readonly encoders?: string;
  /** Size in pixels. Default: the model's own. */
  readonly frames?: number;
  readonly height?: number;
  readonly width?: number;
  /** Where prompts are drawn. Default `auto`: a GPU if there is one. */
  readonly device?: 'auto' | 'cpu' | 'cuda';
  /** Of prompts: phases such as `sampling`, with network calls done of all. */
  readonly onProgress?: (progress: WeightsProgress) => void;
  /** The teacher of a run instead of its student. */
  readonly teacher?: boolean;
  /** Folder of the samples. Default `samples` in `cwd`. */
  readonly out?: string;
  readonly signal?: AbortSignal;
}

export interface SampleResult {
  /** Absolute paths of the images or videos. */
  readonly files: readonly string[];
  readonly out: string;
  readonly steps: number;
  readonly seed: number;
  /** One for each prompt and seed; empty for grids of labels. */
  readonly samples: readonly RenderedSample[];
}

/** A picture (.png) or video (.mp4) of a prompt. */
export interface RenderedSample {
  readonly file: string;
  readonly prompt: string;
  readonly seed: number;
  readonly steps: number;
  readonly frames: number;
  readonly height: number;
  readonly width: number;
  /** For sampling and decoding it. */
  readonly seconds: number;
}
