import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { nearest } from '../../../src/nearest.ts';

describe('nearest', () => {
  it.each([
    ['distil', 'distill'],
    ['guidence', 'guidance'],
    ['stpes', 'steps'],
    ['learningrate', 'learningRate'],
  ])('finds %s in %s', (mistyped, meant) => {
    expect(nearest(mistyped, ['distill', 'guidance', 'steps', 'learningRate', 'resume'])).toBe(meant);
  });

  it('suggests nothing when no name is close', () => {
    expect(nearest('teacher', ['seed', 'method', 'notify'])).toBeUndefined();
    expect(nearest('x', [])).toBeUndefined();
  });

  it('finds every name again after one character is left out', () => {
    fc.assert(
      fc.property(fc.stringMatching(/^[a-z]{4,12}$/), fc.nat(), (name, position) => {
        const at = position % name.length;
        expect(nearest(name.slice(0, at) + name.slice(at + 1), [name])).toBe(name);
      }),
    );
  });
});
