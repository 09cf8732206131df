/** Latents and tokens of a sample, and which sizes are legal. */
import { type Extent, product } from './network.ts';
import type { SizedNetwork } from './registry.ts';

/** Sizes of a sample in pixels. */
export interface SampleSize {
  readonly frames: number;
  readonly height: number;
  readonly width: number;
}

/** first, first + step, ... up to last: the legal values of one size. */
export interface LegalSizes {
  readonly first: number;
  readonly step: number;
  readonly last: number;
}

export interface LegalSample {
  readonly frames: LegalSizes;
  readonly height: LegalSizes;
  readonly width: LegalSizes;
}

/** Pixels per latent: 1 where the network works on pixels. */
export const strideOf = (network: SizedNetwork, onPixels: boolean): Extent =>
  onPixels ? [1, 1, 1] : network.family.vaeStride;

/** Legal sizes: latents must split into patches and end before the last position of the network. */
export function legalSizes({ family, sizes }: SizedNetwork, stride: Extent): LegalSample {
  const most = family.maxLatent(sizes);
  const latent = (axis: 0 | 1 | 2) => {
    const patch = sizes.patchSize[axis];
    return { patch, last: Math.floor(most[axis] / patch) * patch };
  };
  const side = (axis: 1 | 2): LegalSizes => {
    const { patch, last } = latent(axis);
    return { first: patch * stride[axis], step: patch * stride[axis], last: last * stride[axis] };
  };
  const { patch, last } = latent(0);
  const frames = (latents: number): number => 1 + stride[0] * (latents - 1);
  return {
    frames: { first: frames(patch), step: patch * stride[0], last: frames(last) },
    height: side(1),
    width: side(2),
  };
}

export const isLegal = (value: number, { first, step, last }: LegalSizes): boolean =>
  value >= first && value <= last && (value - first) % step === 0;

/** The legal values next to one that is not: those below and above, or the only one. */
export function nearestLegal(value: number, { first, step, last }: LegalSizes): readonly number[] {
  if (value <= first) return [first];
  if (value >= last) return [last];
  const below = first + Math.floor((value - first) / step) * step;
  return [below, below + step];
}

/** What the legal values have in common, in words: `4n+1`, `a multiple of 16`. */
export const describeLegal = ({ first, step }: LegalSizes): string =>
  step === 1 ? `at least ${first}` : first === step ? `a multiple of ${step}` : `${step}n+${first}`;

/** Shape [channels, frames, rows, columns] of the latent of a legal sample. */
export function latentShape(
  { sizes }: SizedNetwork,
  stride: Extent,
  { frames, height, width }: SampleSize,
): readonly [channels: number, ...extent: Extent] {
  return [sizes.inDim, 1 + (frames - 1) / stride[0], height / stride[1], width / stride[2]];
}

/** Tokens the network sees of a latent. */
export const tokensOf = ({ sizes }: SizedNetwork, [, ...extent]: readonly [number, ...Extent]): number =>
  product(extent) / product(sizes.patchSize);
