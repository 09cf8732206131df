import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';

it('docs/results/digits.md says what the evaluation files beside it say', async () => {
  const { page, render } = await import(new URL('../../../scripts/digits-results.mjs', import.meta.url).href);
  expect(readFileSync(page, 'utf8')).toBe(render());
});
