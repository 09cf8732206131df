/** FLOPs of one network call by kind of kernel. Counted as `make bench-network` counts them: two for a multiply and add. */
import type { Checkpointing, NetworkShape } from './workload.ts';

/** FLOPs of one sample through all blocks, forward, a value without tangent. */
export interface ForwardFlops {
  readonly product: number;
  /** Of adapters; part of no share of M, for their products are thin. */
  readonly adapters: number;
  readonly selfAttention: number;
  readonly textAttention: number;
}

export function forwardFlops({ layers, dim, linears, lora, tokens, textRows }: NetworkShape): ForwardFlops {
  const rowsOf = (rows: 'tokens' | 'text'): number => (rows === 'tokens' ? tokens : textRows);
  const product = linears.reduce((sum, { from, to, rows }) => sum + 2 * rowsOf(rows) * from * to, 0);
  const thin = (lora?.layers ?? []).reduce(
    (sum, { from, to, rows }) => sum + 2 * rowsOf(rows) * (lora?.rank ?? 0) * (from + to),
    0,
  );
  return {
    product: layers * product,
    adapters: layers * thin,
    selfAttention: layers * 4 * tokens * tokens * dim,
    textAttention: layers * 4 * tokens * textRows * dim,
  };
}

/** What a call does. `value`: forward of a value; `dual`: of value and tangent. */
export interface CallFlops {
  readonly product: number;
  readonly attention: number;
  readonly attentionDual: number;
  readonly productBackward: number;
  readonly attentionBackward: number;
}

const nothing: CallFlops = { product: 0, attention: 0, attentionDual: 0, productBackward: 0, attentionBackward: 0 };

/** A forward. A tangent doubles the products; attention among tokens takes three times as much, to the text twice. */
export function callFlops(shape: NetworkShape, kind: 'value' | 'dual', adapted: boolean): CallFlops {
  const { product, adapters, selfAttention, textAttention } = forwardFlops(shape);
  const once = product + (adapted ? adapters : 0);
  return kind === 'value'
    ? { ...nothing, product: once, attention: selfAttention + textAttention }
    : { ...nothing, product: 2 * once, attentionDual: 3 * selfAttention + 2 * textAttention };
}

/** A backward with its recomputation. Frozen weights have no gradient: half of the products. */
export function backwardFlops(shape: NetworkShape, mode: Checkpointing): CallFlops {
  const { product, adapters, selfAttention, textAttention } = forwardFlops(shape);
  const attention = selfAttention + textAttention;
  const adapted = shape.lora !== null;
  const again = {
    none: { product: 0, attention: 0 },
    selective: { product: adapted ? adapters : 0, attention: 0 },
    asymmetric: { product: product + (adapted ? adapters : 0), attention: 0 },
    block: { product: product + (adapted ? adapters : 0), attention },
  }[mode];
  return {
    ...nothing,
    ...again,
    productBackward: adapted ? product + 2 * adapters : 2 * product,
    attentionBackward: 2.5 * attention,
  };
}

export const sumOf = (flops: CallFlops): number => Object.values(flops).reduce((all, part) => all + part, 0);

/** FLOPs of several such calls. */
export const times = (flops: CallFlops, count: number): CallFlops => ({
  product: count * flops.product,
  attention: count * flops.attention,
  attentionDual: count * flops.attentionDual,
  productBackward: count * flops.productBackward,
  attentionBackward: count * flops.attentionBackward,
});
