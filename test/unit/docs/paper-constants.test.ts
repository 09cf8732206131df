import { join } from 'node:path';
import { expect, it } from 'vitest';
import { listPresets, loadConfig } from '../../../src/config/load.ts';
import type { RcmConfig } from '../../../src/config/types.ts';
import { packageRoot } from '../../../src/package-root.ts';

type Render = (configs: Readonly<Record<string, RcmConfig>>) => string;

const script = async (): Promise<Render> =>
  (await import(new URL('../../../scripts/paper-constants.mjs', import.meta.url).href)).render;

async function presets(): Promise<Readonly<Record<string, RcmConfig>>> {
  const loaded = await Promise.all(
    listPresets().map(async preset => [preset, (await loadConfig(preset, { cwd: '/', env: {} })).config] as const),
  );
  return Object.fromEntries(loaded);
}

it('docs/paper-constants.md says what the presets say (npm run generate)', async () => {
  const render = await script();
  await expect(render(await presets())).toMatchFileSnapshot(join(packageRoot(), 'docs/paper-constants.md'));
});

it('a difference from the public code needs a reason', async () => {
  const [render, configs] = [await script(), await presets()];
  const name = 'wan2.1-t2v-1.3b-480p-rcm';
  const config = configs[name] as RcmConfig;
  const changed = { ...config, schedule: { ...config.schedule, studentEvery: 4 } };
  expect(() => render({ ...configs, [name]: changed })).toThrow(
    'schedule.studentEvery is 4, public code has 5: say why.',
  );
});
