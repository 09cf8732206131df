/** Size rules: what the network, its latents and the data allow. Everything here is known before Python starts. */
import {
  describeLegal,
  isLegal,
  type LegalSizes,
  latentShape,
  legalSizes,
  nearestLegal,
  strideOf,
  tokensOf,
} from '../models/latent.ts';
import { type Extent, narrowest } from '../models/network.ts';
import { networkNamed, type SizedNetwork, sizedNetwork } from '../models/registry.ts';
import { type Conflict, conflict } from './conflict.ts';
import type { RcmConfig } from './types.ts';

/** The shipped digits: one channel, one frame, 8 x 8 pixels. */
const digitsShape = { channels: 1, frames: 1, height: 8, width: 8 } as const;

const axes = ['frames', 'height', 'width'] as const;

/** What a network sees of one sample. */
export interface SampleFacts {
  readonly network: string;
  readonly parameters: number;
  /** [channels, frames, rows, columns] */
  readonly latent: readonly number[];
  readonly tokens: number;
}

/** Sizes that fit no network, no latent or not the data. */
export function findSizeConflicts(config: RcmConfig): readonly Conflict[] {
  const sized = sizedNetwork(config.model.name, config.model.overrides);
  if ('problems' in sized) {
    return sized.problems.map(({ key, text, hint }) => ({
      ...conflict(`model.overrides.${key}`, text, hint),
      code: sized.code,
    }));
  }
  const { network } = sized;
  const data = config.data.kind === 'digits' ? digitsConflicts(config, network) : latentConflicts(config, network);
  return [...data, ...velocityConflicts(network), ...textConflicts(config, network), ...loraConflicts(config, network)];
}

/** Parameters, latent and tokens of a config that has no size conflicts. */
export function sampleFacts(config: RcmConfig): SampleFacts {
  const network = networkOf(config);
  const latent = latentShape(network, stride(config, network), config.model);
  return { network: network.name, parameters: network.parameters, latent, tokens: tokensOf(network, latent) };
}

/** Sizes that are legal but not those the published weights were made for; empty where there are none. */
export function sizeWarnings({ model }: RcmConfig): readonly string[] {
  const { family, release } = networkNamed(model.name);
  if (release === null) return [];
  const { height, width, frames } = model;
  const warnings: string[] = [];
  if (!release.pixelSizes.some(([rows, columns]) => rows === height && columns === width)) {
    const known = release.pixelSizes.map(([rows, columns]) => `${rows} x ${columns}`).join(', ');
    warnings.push(`The weights of ${model.name} were made for ${known} (height x width), not ${height} x ${width}.`);
  }
  if (family.name === 'cosmos-predict2' && frames !== 1) {
    warnings.push(`${model.name} was made for images: model.frames 1, not ${frames}.`);
  }
  return warnings;
}

function networkOf({ model }: RcmConfig): SizedNetwork {
  const sized = sizedNetwork(model.name, model.overrides);
  if ('problems' in sized) throw new Error(`${model.name}: ${sized.problems[0]?.text}`);
  return sized.network;
}

/** Shards hold latents whatever `model.vae` is: null only says that nothing is decoded. */
const stride = ({ model, data }: Pick<RcmConfig, 'model' | 'data'>, network: SizedNetwork): Extent =>
  strideOf(network, model.vae === null && data.kind !== 'latentShards');

/** Sides and frames that do not make whole latents and patches, or go beyond the last position. */
function latentConflicts(config: RcmConfig, network: SizedNetwork): readonly Conflict[] {
  const pixelsPerLatent = stride(config, network);
  const legal = legalSizes(network, pixelsPerLatent);
  const sides = axes.flatMap(axis => sideConflicts(axis, config.model[axis], legal[axis], network.name));
  const { inDim } = network.sizes;
  const { vaeChannels } = network.family;
  if (pixelsPerLatent[1] === 1 || inDim === vaeChannels) return sides;
  const hint = `Set model.overrides.inDim and outDim to ${vaeChannels}, or remove them.`;
  return [...sides, conflict('model.overrides.inDim', `is ${inDim}, but latents have ${vaeChannels} channels`, hint)];
}

function sideConflicts(
  axis: (typeof axes)[number],
  value: number,
  legal: LegalSizes,
  network: string,
): readonly Conflict[] {
  if (isLegal(value, legal)) return [];
  const nearest = nearestLegal(value, legal);
  const text =
    value > legal.last
      ? `is ${value}, beyond the last position of ${network}, ${legal.last}`
      : `is ${value}, which is not ${describeLegal(legal)}`;
  return [conflict(`model.${axis}`, text, `Use ${nearest.join(' or ')}.`)];
}

function digitsConflicts({ model }: RcmConfig, network: SizedNetwork): readonly Conflict[] {
  const { channels, ...sizes } = digitsShape;
  const sides = axes
    .filter(axis => model[axis] !== sizes[axis])
    .map(axis =>
      conflict(`model.${axis}`, `is ${model[axis]}, but the digits have ${sizes[axis]}`, `Use ${sizes[axis]}.`),
    );
  const conflicts = [...sides];
  const { inDim, patchSize } = network.sizes;
  if (inDim !== channels) {
    const hint = `Set model.overrides.inDim and outDim to ${channels}.`;
    conflicts.push(conflict('model.overrides.inDim', `is ${inDim}, but the digits have ${channels} channel`, hint));
  }
  const parts = axes.map(axis => sizes[axis]);
  if (patchSize.some((part, axis) => (parts[axis] as number) % part !== 0)) {
    const text = `is ${patchSize.join(' x ')}, which does not divide the digits' ${parts.join(' x ')}`;
    conflicts.push(conflict('model.overrides.patchSize', text, 'Use [1, 2, 2].'));
  }
  return conflicts;
}

/** A velocity is as large as what it moves. */
function velocityConflicts({ sizes: { inDim, outDim } }: SizedNetwork): readonly Conflict[] {
  if (inDim === outDim) return [];
  const text = `is ${outDim}, but the velocity of ${inDim} channels has ${inDim}`;
  return [conflict('model.overrides.outDim', text, `Use ${inDim}.`)];
}

function textConflicts({ model }: RcmConfig, { family, sizes }: SizedNetwork): readonly Conflict[] {
  if (model.textEncoder === 'labels') return [];
  const { name, width } = family.textEncoder;
  if (model.textEncoder !== 'auto' && model.textEncoder !== name) {
    return [conflict('model.textEncoder', `is ${model.textEncoder}, but ${model.name} reads ${name}`, `Use ${name}.`)];
  }
  if (sizes.textDim === width) return [];
  const text = `is ${sizes.textDim}, but the states of ${name} are ${width} wide`;
  return [conflict('model.overrides.textDim', text, `Use ${width}, or model.textEncoder labels.`)];
}

function loraConflicts({ student: { lora } }: RcmConfig, { family, sizes }: SizedNetwork): readonly Conflict[] {
  if (lora === null) return [];
  const layers = family.linears(sizes);
  const most = Math.min(...lora.targets.map(target => narrowest(layers, target)));
  if (lora.rank <= most) return [];
  const text = `is ${lora.rank}, more than the narrowest side of the layers it adapts, ${most}`;
  return [conflict('student.lora.rank', text, `Use at most ${most}.`)];
}
