import { RcmBridgeError } from '../errors/index.ts';
import { listGpus } from './gpus.ts';
import { managedTorch } from './requirements.ts';

/** PyTorch's public index of builds without CUDA: the only registry address in this repository. */
const cpuIndex = 'https://download.pytorch.org/whl/cpu';
const answerTimeoutMs = 3_000;

const gigabyte = 1_000_000_000;

/** How torch is installed, and what that takes. */
export interface TorchPlan {
  /** Words after `pip install`. */
  readonly pipArguments: readonly string[];
  /** For environment.json and for people. */
  readonly source: string;
  /** Free space the whole environment needs. */
  readonly neededBytes: number;
  /** For the question of consent. */
  readonly size: string;
}

export interface TorchPlanOptions {
  /** `auto`, `cpu`, `cuda` or a pip requirement such as `torch==2.12.0`. */
  readonly choice: string;
  readonly signal?: AbortSignal | undefined;
  /** For tests. */
  readonly index?: string;
  readonly platform?: string;
  readonly hasGpu?: () => Promise<boolean>;
}

/** @throws RcmBridgeError E_TORCH_CPU if a CPU build was demanded and cannot be had, E_USAGE for an odd requirement. */
export async function planTorch(options: TorchPlanOptions): Promise<TorchPlan> {
  const { choice, signal } = options;
  const platform = options.platform ?? `${process.platform}-${process.arch}`;
  const index = options.index ?? cpuIndex;
  if (choice === 'cuda') return fromPip(managedTorch, platform, "pip's configured sources");
  if (choice !== 'auto' && choice !== 'cpu') return requested(choice, platform);
  // Only on Linux does the default wheel carry CUDA.
  if (!platform.startsWith('linux')) return fromPip(managedTorch, platform, "pip's configured sources");
  if (choice === 'auto') {
    const wantsCpu = platform === 'linux-x64' && !(await (options.hasGpu ?? hasGpu)());
    if (wantsCpu && (await answers(index, signal))) return fromCpuIndex(index);
    return fromPip(managedTorch, platform, "pip's configured sources");
  }
  if (await answers(index, signal)) return fromCpuIndex(index);
  throw new RcmBridgeError(
    'E_TORCH_CPU',
    `The index of torch builds without CUDA does not answer within ${answerTimeoutMs / 1000} s.`,
    {
      hint: 'Use --torch auto (takes the larger default build), give a wheel with --torch <file>, or add an index that has it to the configuration of pip and use --torch torch==2.11.0+cpu.',
    },
  );
}

function requested(choice: string, platform: string): TorchPlan {
  if (choice.startsWith('-') || /\s-/.test(choice) || !/torch/i.test(choice)) {
    throw new RcmBridgeError(
      'E_USAGE',
      `--torch takes auto, cpu, cuda or one pip requirement, not ${JSON.stringify(choice)}.`,
      {
        hint: 'Example: --torch torch==2.12.0',
      },
    );
  }
  return fromPip(choice, platform, "pip's configured sources, as requested");
}

const fromCpuIndex = (index: string): TorchPlan => ({
  pipArguments: ['--extra-index-url', index, `${managedTorch}+cpu`],
  source: "PyTorch's index of builds without CUDA",
  neededBytes: 2.5 * gigabyte,
  size: 'up to 2.5 GB on disk',
});

/** On Linux the wheel brings CUDA: 2.5 GB to download, 4.9 GB on disk, and both at once while pip unpacks. */
const fromPip = (requirement: string, platform: string, source: string): TorchPlan => ({
  pipArguments: [requirement],
  source,
  neededBytes: (platform.startsWith('linux') ? 8 : 2.5) * gigabyte,
  size: platform.startsWith('linux') ? 'about 2.5 GB to download and 4.9 GB on disk' : 'up to 2.5 GB on disk',
});

/** Whether the index answers in time. */
async function answers(index: string, signal: AbortSignal | undefined): Promise<boolean> {
  const limit = AbortSignal.timeout(answerTimeoutMs);
  try {
    const response = await fetch(`${index}/torch/`, {
      method: 'HEAD',
      signal: signal ? AbortSignal.any([limit, signal]) : limit,
    });
    return response.ok;
  } catch {
    return false;
  }
}

const hasGpu = async (): Promise<boolean> => (await listGpus()).length > 0;
