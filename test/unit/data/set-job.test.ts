import { expect, it } from 'vitest';
import { loadConfig } from '../../../src/config/load.ts';
import { outOf } from '../../../src/data/set-job.ts';

it('a config of labels is refused for that, not for the folder that it does not name', async () => {
  const { config } = await loadConfig('digits-rcm', { cwd: process.cwd(), env: {}, set: [] });
  for (const out of [undefined, '/sets/digits']) expect(() => outOf(config, out)).toThrow(/digits-rcm takes labels/);
});
