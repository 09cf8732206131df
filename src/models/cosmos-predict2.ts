/**
 * Cosmos-Predict2 text to image: sections 2, 4.1, 4.5 and 9 of cosmos-predict2.md;
 * py/rcm_sidecar/networks/cosmos_predict2.py builds it.
 */
import {
  attentionLayers,
  type Extent,
  type Family,
  feedForwardLayers,
  headProblems,
  type Network,
  type ParameterCounts,
  product,
  type SizeProblem,
  type Sizes,
} from './network.ts';

export interface CosmosSizes extends Sizes {
  /** Hidden width of the feed-forward layers over dim. */
  readonly mlpRatio: number;
  /** Width of the modulation's bottleneck. */
  readonly adalnLoraDim: number;
  /** Extrapolation of the rotary positions along frames, rows, columns. */
  readonly ropeRatios: Extent;
}

const family: Family<CosmosSizes> = {
  name: 'cosmos-predict2',
  vaeStride: [4, 8, 8],
  vaeChannels: 16,
  encoderFiles: {
    'text encoder': ['text_encoder/config.json'],
    tokenizer: ['tokenizer/tokenizer.json'],
    VAE: ['tokenizer/tokenizer.pth', 'vae/config.json'],
  },
  textEncoder: { name: 't5-11b', width: 1024 },
  maxLatent: () => [128, 240, 240],
  problems: sizes => [...headProblems(sizes), ...patchProblems(sizes), ...ratioProblems(sizes)],
  parameters,
  linears: ({ dim, textDim, mlpRatio }) => [
    ...attentionLayers(dim, textDim),
    ...feedForwardLayers(dim, roundHalfEven(dim * mlpRatio)),
  ],
  gatedBranches: 3,
};

function patchProblems({ patchSize: [frames, rows, columns] }: CosmosSizes): readonly SizeProblem[] {
  if (frames === 1) return [];
  return [
    {
      key: 'patchSize',
      text: `covers ${frames} frames, but a patch of this network covers one`,
      hint: `Use [1, ${rows}, ${columns}].`,
    },
  ];
}

function ratioProblems({ dim, mlpRatio }: CosmosSizes): readonly SizeProblem[] {
  if (roundHalfEven(dim * mlpRatio) > 0) return [];
  return [
    { key: 'mlpRatio', text: `is ${mlpRatio}, which leaves no feed-forward layer`, hint: 'The published one is 4.' },
  ];
}

/** Section 4.1, for any sizes. No layer has a bias; the padding mask is one more channel in. */
function parameters(sizes: CosmosSizes): ParameterCounts {
  const { dim, numHeads, textDim, inDim, outDim, adalnLoraDim } = sizes;
  const cells = product(sizes.patchSize);
  const hidden = roundHalfEven(dim * sizes.mlpRatio);
  const headNorms = 4 * (dim / numHeads);
  const modulation = (parts: number) => dim * adalnLoraDim + adalnLoraDim * parts * dim;
  const attention = 4 * dim * dim + 2 * dim * dim + 2 * dim * textDim;
  const block = attention + headNorms + 2 * dim * hidden + 3 * modulation(3);
  const time = dim * dim + 3 * dim * dim + dim;
  const head = dim * cells * outDim + modulation(2);
  return { block, wide: time + head, rest: dim * (inDim + 1) * cells };
}

/** As Python's `round`, which makes the layer. */
function roundHalfEven(value: number): number {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 === 0 ? below : below + 1;
}

const shared = {
  inDim: 16,
  outDim: 16,
  textDim: 1024,
  mlpRatio: 4,
  adalnLoraDim: 256,
  textLen: 512,
  patchSize: [1, 2, 2],
  ropeRatios: [1, 4, 4],
  eps: 1e-6,
} as const;

const release = (size: string) =>
  ({
    repository: `nvidia/Cosmos-Predict2-${size}-Text2Image`,
    file: 'model.pt',
    diffusersRepository: `nvidia/Cosmos-Predict2-${size}-Text2Image`,
    pixelSizes: [
      [1024, 1024],
      [880, 1168],
      [1168, 880],
      [768, 1360],
      [1360, 768],
    ],
  }) as const;

export const cosmosPredict2 = {
  'cosmos-predict2-tiny': { family, sizes: { ...shared, dim: 128, numHeads: 2, numLayers: 2 }, release: null },
  'cosmos-predict2-t2i-0.6b': {
    family,
    sizes: { ...shared, dim: 1280, numHeads: 20, numLayers: 20 },
    release: release('0.6B'),
  },
  'cosmos-predict2-t2i-2b': {
    family,
    sizes: { ...shared, dim: 2048, numHeads: 16, numLayers: 28 },
    release: release('2B'),
  },
  'cosmos-predict2-t2i-14b': {
    family,
    sizes: { ...shared, dim: 5120, numHeads: 40, numLayers: 36 },
    release: release('14B'),
  },
} as const satisfies Readonly<Record<string, Network<CosmosSizes>>>;
