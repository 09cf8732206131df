/** Wan2.1 text to video: spec sections 1, 5, 6.1 and 8 of wan2.1.md; py/rcm_sidecar/networks/wan2_1.py builds it. */
import {
  attentionLayers,
  type Family,
  feedForwardLayers,
  headProblems,
  type Network,
  type ParameterCounts,
  product,
  type Release,
  type SizeProblem,
  type Sizes,
} from './network.ts';

export interface WanSizes extends Sizes {
  readonly ffnDim: number;
  /** Width of the time features. */
  readonly freqDim: number;
}

/** Positions in the published tables along each axis, in the original code and in diffusers. */
const positions = 1024;

const family: Family<WanSizes> = {
  name: 'wan2.1',
  vaeStride: [4, 8, 8],
  vaeChannels: 16,
  encoderFiles: {
    'text encoder': ['models_t5_umt5-xxl-enc-bf16.pth', 'text_encoder/config.json'],
    tokenizer: ['google/umt5-xxl/tokenizer.json', 'tokenizer/tokenizer.json'],
    VAE: ['Wan2.1_VAE.pth', 'vae/config.json'],
  },
  textEncoder: { name: 'umt5-xxl', width: 4096 },
  maxLatent: ({ patchSize: [frames, rows, columns] }) => [positions * frames, positions * rows, positions * columns],
  problems: sizes => [...headProblems(sizes), ...timeProblems(sizes)],
  parameters,
  // Text attention reads the embedded text, as wide as the model.
  linears: ({ dim, ffnDim }) => [...attentionLayers(dim, dim), ...feedForwardLayers(dim, ffnDim)],
  gatedBranches: 2,
};

function timeProblems({ freqDim }: WanSizes): readonly SizeProblem[] {
  if (freqDim % 2 === 0) return [];
  const even = [freqDim - 1, freqDim + 1].filter(width => width > 0);
  return [{ key: 'freqDim', text: `is ${freqDim}, which is odd`, hint: `Use ${even.join(' or ')}.` }];
}

/** Spec section 5, for any sizes. */
function parameters(sizes: WanSizes): ParameterCounts {
  const { dim, ffnDim, freqDim, textDim, inDim, outDim } = sizes;
  const cells = product(sizes.patchSize);
  const linear = (from: number, to: number) => from * to + to;
  const attention = 4 * linear(dim, dim) + 2 * dim;
  const block = 2 * attention + 2 * dim + 6 * dim + linear(dim, ffnDim) + linear(ffnDim, dim);
  const time = linear(freqDim, dim) + linear(dim, dim) + linear(dim, 6 * dim);
  const head = linear(dim, cells * outDim) + 2 * dim;
  return { block, wide: time + head, rest: linear(inDim * cells, dim) + linear(textDim, dim) + linear(dim, dim) };
}

const shared = {
  inDim: 16,
  outDim: 16,
  textDim: 4096,
  freqDim: 256,
  textLen: 512,
  patchSize: [1, 2, 2],
  eps: 1e-6,
} as const;

const sizes480p: Release['pixelSizes'] = [
  [480, 832],
  [832, 480],
  [640, 640],
  [480, 640],
  [640, 480],
];
const sizes720p: Release['pixelSizes'] = [
  [720, 1280],
  [1280, 720],
  [960, 960],
  [720, 960],
  [960, 720],
];

export const wan21 = {
  'wan2.1-tiny': {
    family,
    sizes: { ...shared, dim: 256, ffnDim: 512, numHeads: 2, numLayers: 2, textDim: 64 },
    release: null,
  },
  'wan2.1-t2v-1.3b': {
    family,
    sizes: { ...shared, dim: 1536, ffnDim: 8960, numHeads: 12, numLayers: 30 },
    release: {
      repository: 'Wan-AI/Wan2.1-T2V-1.3B',
      file: 'diffusion_pytorch_model.safetensors',
      diffusersRepository: 'Wan-AI/Wan2.1-T2V-1.3B-Diffusers',
      pixelSizes: sizes480p,
    },
  },
  'wan2.1-t2v-14b': {
    family,
    sizes: { ...shared, dim: 5120, ffnDim: 13824, numHeads: 40, numLayers: 40 },
    release: {
      repository: 'Wan-AI/Wan2.1-T2V-14B',
      file: 'diffusion_pytorch_model.safetensors.index.json',
      diffusersRepository: 'Wan-AI/Wan2.1-T2V-14B-Diffusers',
      pixelSizes: [...sizes480p, ...sizes720p],
    },
  },
} as const satisfies Readonly<Record<string, Network<WanSizes>>>;
