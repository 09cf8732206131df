/** GPUs that can be planned for: public facts, and what was measured on them. */

export const gpuNames = ['h200', 'h100', 'a100', 'l40s', '4090'] as const;
export type GpuName = (typeof gpuNames)[number];

/**
 * Rates of the kernels as shares of M, the rate of an 8192^3 bf16 matrix product, and of the copy rate (read plus
 * written). The shares of Hopper come from the profiled rows of docs/results/network.md: FLOPs of a family of kernels over
 * its time over M (Wan2.1 1.3B at 31,200 tokens; they give the rows of 14B and of Cosmos-Predict2 within 4 %).
 */
export interface Shares {
  /** Matrix products of value and tangent, forward; of the gradients. */
  readonly product: number;
  readonly productBackward: number;
  readonly attention: number;
  readonly attentionDual: number;
  readonly attentionBackward: number;
  /** Fused elementwise kernels, of the copy rate. */
  readonly elementwise: number;
}

export interface Gpu {
  readonly name: GpuName;
  readonly title: string;
  /** As torch sees it. */
  readonly memoryBytes: number;
  /** Public dense bf16 rate, FLOP/s. */
  readonly peakFlops: number;
  /** Public memory bandwidth, bytes/s. */
  readonly bandwidth: number;
  /** M, FLOP/s. */
  readonly matmulFlops: number;
  /** Bytes read plus bytes written, a second. */
  readonly copyBytes: number;
  readonly shares: Shares;
  /** Between GPUs of one machine, one way, bytes/s: three quarters of the public rate. */
  readonly linkBytes: number;
  /** Whether M and the shares were measured on this GPU; else they are the H200's shares of the public rates. */
  readonly measured: boolean;
}

/** One machine, or several that are alike. */
export interface Machine {
  readonly gpu: Gpu;
  readonly gpusPerNode: number;
  readonly nodes: number;
}

/** Between machines, a GPU's share, one way: three quarters of 400 Gbit/s. */
export const networkBytes = 37.5e9;

const gib = 2 ** 30;

const hopper: Shares = {
  product: 0.92,
  productBackward: 0.965,
  attention: 0.724,
  attentionDual: 0.896,
  attentionBackward: 0.648,
  elementwise: 0.9,
};

/** FlashAttention-2 and the portable Triton kernel, whose H200 times are in docs/results/kernels.md. Assumed elsewhere. */
const portable: Shares = { ...hopper, attention: 0.65, attentionDual: 0.7, attentionBackward: 0.5 };

// Of the H200: M 760 TFLOP/s (756.5 to 765.6 over the rows), copy 4.30 TB/s.
const measuredFlops = 760e12;
const measuredCopy = 4.3e12;
const shareOfPeak = measuredFlops / 989e12;
const shareOfBandwidth = measuredCopy / 4.8e12;

const estimated = (
  gpu: Pick<Gpu, 'name' | 'title' | 'memoryBytes' | 'peakFlops' | 'bandwidth' | 'shares' | 'linkBytes'>,
): Gpu => ({
  ...gpu,
  matmulFlops: gpu.peakFlops * shareOfPeak,
  copyBytes: gpu.bandwidth * shareOfBandwidth,
  measured: false,
});

const gpus: Readonly<Record<GpuName, Gpu>> = {
  h200: {
    name: 'h200',
    title: 'NVIDIA H200',
    memoryBytes: 139.8 * gib,
    peakFlops: 989e12,
    bandwidth: 4.8e12,
    matmulFlops: measuredFlops,
    copyBytes: measuredCopy,
    shares: hopper,
    linkBytes: 337e9,
    measured: true,
  },
  h100: estimated({
    name: 'h100',
    title: 'NVIDIA H100 80GB',
    memoryBytes: 79.1 * gib,
    peakFlops: 989e12,
    bandwidth: 3.35e12,
    shares: hopper,
    linkBytes: 337e9,
  }),
  a100: estimated({
    name: 'a100',
    title: 'NVIDIA A100 80GB',
    memoryBytes: 79.1 * gib,
    peakFlops: 312e12,
    bandwidth: 2.04e12,
    shares: portable,
    linkBytes: 225e9,
  }),
  l40s: estimated({
    name: 'l40s',
    title: 'NVIDIA L40S',
    memoryBytes: 44.4 * gib,
    peakFlops: 362e12,
    bandwidth: 0.864e12,
    shares: portable,
    linkBytes: 24e9,
  }),
  '4090': estimated({
    name: '4090',
    title: 'NVIDIA RTX 4090',
    memoryBytes: 23.5 * gib,
    peakFlops: 165e12,
    bandwidth: 1.008e12,
    shares: portable,
    linkBytes: 24e9,
  }),
};

export const gpuNamed = (name: GpuName): Gpu => gpus[name];

/** The GPU whose name, as `nvidia-smi -L` prints it, is one of those known here. */
export function knownGpu(title: string): Gpu | undefined {
  const name = gpuNames.find(known => new RegExp(`\\b${known}\\b`, 'i').test(title));
  // There are A100 of 40 GB, too, and an H100 NVL of 94.
  if (name === undefined || (name === 'a100' && /40GB/i.test(title))) return undefined;
  return gpus[name];
}
