/** What is known of a network before Python starts: sizes, limits, parameter counts, where its weights are published. */

/** Latent or pixel (frames, rows, columns). */
export type Extent = readonly [frames: number, rows: number, columns: number];

/** Sizes that every network has. Names are those of `model.overrides`. */
export interface Sizes {
  readonly dim: number;
  readonly numHeads: number;
  readonly numLayers: number;
  readonly inDim: number;
  readonly outDim: number;
  readonly textDim: number;
  readonly textLen: number;
  /** Latent frames, rows and columns a token covers. */
  readonly patchSize: Extent;
  readonly eps: number;
}

/** Where the weights are published and what the files are called. */
export interface Release {
  /** OWNER/NAME on the hub, in the original layout. */
  readonly repository: string;
  /** The network's file there: a single file, or the index of its shards. */
  readonly file: string;
  /** OWNER/NAME in the diffusers layout, with the network in `transformer/`. */
  readonly diffusersRepository: string;
  /** (height, width) in pixels that the weights were made for; others are legal. */
  readonly pixelSizes: readonly (readonly [height: number, width: number])[];
}

export type FamilyName = 'wan2.1' | 'cosmos-predict2';

/** One architecture. `S` adds the sizes that only it has. */
export interface Family<S extends Sizes = Sizes> {
  readonly name: FamilyName;
  /** Pixels per latent; frames = 1 + stride * (latent frames - 1). */
  readonly vaeStride: Extent;
  /** Channels of the VAE's latents. */
  readonly vaeChannels: number;
  /** Where a downloaded model keeps what goes with the network, the original layout first. */
  readonly encoderFiles: Readonly<Record<'text encoder' | 'tokenizer' | 'VAE', readonly [string, ...string[]]>>;
  readonly textEncoder: { readonly name: 'umt5-xxl' | 't5-11b'; readonly width: number };
  /** Largest latent whose positions the published code of this family knows. */
  maxLatent(sizes: S): Extent;
  /** Sizes that fit no network, as sentences; the same rules as E_NETWORK_SIZE in Python. */
  problems(sizes: S): readonly SizeProblem[];
  /** Numbers of parameters: of one block, of the parts that stay float32 (time path and head), of the rest. */
  parameters(sizes: S): ParameterCounts;
  /** The linear layers of a block over tokens or text rows; all of them can have adapters. */
  linears(sizes: S): readonly LinearLayer[];
  /** Branches of a block (attention, text attention, feed-forward) that a gate scales. */
  readonly gatedBranches: number;
}

export interface ParameterCounts {
  readonly block: number;
  readonly wide: number;
  readonly rest: number;
}

export interface LinearLayer {
  readonly from: number;
  readonly to: number;
  readonly target: LoraTarget;
  /** What a row of its input is. */
  readonly rows: 'tokens' | 'text';
}

export type LoraTarget = 'attention' | 'ffn';

/** A size that fits no network. */
export interface SizeProblem {
  /** Key below `model.overrides`. */
  readonly key: string;
  readonly text: string;
  readonly hint: string;
}

/** A named network of a family. */
export interface Network<S extends Sizes = Sizes> {
  readonly family: Family<S>;
  readonly sizes: S;
  /** null: weights of this one are not published. */
  readonly release: Release | null;
}

/** All parameters of a network with these sizes. */
export function totalParameters(family: Family, sizes: Sizes): number {
  const { block, wide, rest } = family.parameters(sizes);
  return sizes.numLayers * block + wide + rest;
}

/** Smallest side of the layers that a LoRA target names: no rank is larger. */
export const narrowest = (layers: readonly LinearLayer[], target: LoraTarget): number =>
  Math.min(...layers.filter(layer => layer.target === target).flatMap(({ from, to }) => [from, to]));

/** Both attentions of a block: queries and output of `dim`, keys and values of what is attended to. */
export const attentionLayers = (dim: number, textDim: number): readonly LinearLayer[] => {
  const layer = (from: number, rows: LinearLayer['rows']): LinearLayer => ({
    from,
    to: dim,
    target: 'attention',
    rows,
  });
  const own = layer(dim, 'tokens');
  const text = layer(textDim, 'text');
  return [own, own, own, own, own, own, text, text];
};

/** Both layers of the feed-forward part. */
export const feedForwardLayers = (dim: number, hidden: number): readonly LinearLayer[] => [
  { from: dim, to: hidden, target: 'ffn', rows: 'tokens' },
  { from: hidden, to: dim, target: 'ffn', rows: 'tokens' },
];

export const product = (extent: readonly number[]): number => extent.reduce((all, part) => all * part, 1);

/** Heads that are looked at for an offer; no network has as many. */
const mostHeads = 1024;

/** A width that splits into heads whose size is even, as the rotary pairs need it. */
export function headProblems({ dim, numHeads }: Sizes): readonly SizeProblem[] {
  const step = 2 * numHeads;
  if (dim % step === 0) return [];
  const width = Math.floor(dim / step) * step;
  const widths = [width, width + step].filter(other => other > 0);
  const legal = Array.from({ length: mostHeads }, (_, index) => index + 1).filter(heads => dim % (2 * heads) === 0);
  const heads = [legal.findLast(other => other < numHeads), legal.find(other => other > numHeads)];
  const offered = heads.filter(other => other !== undefined);
  return [
    {
      key: 'dim',
      text: `is ${dim}, which does not split into ${numHeads} heads of even size`,
      hint: `Use dim ${widths.join(' or ')}${offered.length > 0 ? `, or numHeads ${offered.join(' or ')}` : ''}.`,
    },
  ];
}
