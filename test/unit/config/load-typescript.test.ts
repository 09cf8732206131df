import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { loadConfig } from '../../../src/config/load.ts';
import { isRcmBridgeError } from '../../../src/errors/index.ts';

let cwd = '';
beforeEach(() => {
  cwd = mkdtempSync(join(tmpdir(), 'rcm-config-ts-'));
});
afterEach(() => rmSync(cwd, { recursive: true, force: true }));

const write = (name: string, text: string): void => {
  mkdirSync(dirname(join(cwd, name)), { recursive: true });
  writeFileSync(join(cwd, name), text);
};
const load = (name: string, typeCheck = false) => loadConfig(`./${name}`, { cwd, env: {}, typeCheck });
const refusal = (promise: Promise<unknown>): Promise<{ code: string; message: string; hint?: string }> =>
  promise.then(
    () => Promise.reject(new Error('it was accepted')),
    (error: unknown) => (isRcmBridgeError(error) ? error : Promise.reject(error)),
  );

const config = `
import { basename } from 'node:path';
import { defineConfig, type RcmConfigInput } from 'rcm-bridge/config';
import { steps } from './steps.ts';
import sizes from './sizes.json';
enum Seed { Mine = 7 }
const shared: RcmConfigInput['compute'] = await Promise.resolve({ threads: 2 });
export default defineConfig({
  extends: 'digits-rcm',
  name: basename(new URL('.', import.meta.url).pathname),
  seed: Seed.Mine,
  compute: shared,
  schedule: { steps },
  model: { overrides: { dim: sizes.dim } },
});
`;

describe('a config in TypeScript', () => {
  it.each(['rcm.config.ts', 'rcm.config.mts'])('%s may use enums, await, imports and import.meta', async name => {
    write(name, config);
    write('steps.ts', "import { more } from './lib/more.js';\nexport const steps: number = 40 + more;\n");
    write('lib/more.ts', 'export const more = 2;\n');
    write('sizes.json', '{ "dim": 32 }');
    for (const typeCheck of [false, true]) {
      const { config: loaded, origins } = await load(name, typeCheck);
      expect(loaded).toMatchObject({
        seed: 7,
        schedule: { steps: 42 },
        model: { overrides: { dim: 32, numHeads: 2 } },
      });
      expect(loaded.name).toBe(cwd.split('/').at(-1));
      expect(origins['schedule.steps']).toEqual({ kind: 'file', where: name });
    }
    expect(readdirSync(cwd).filter(entry => entry.startsWith('.'))).toEqual([]);
  });

  it('is type-checked on demand, with the line of the error', async () => {
    write(
      'rcm.config.ts',
      "import { defineConfig } from 'rcm-bridge/config';\nexport default defineConfig({\n  schedule: { steps: '5' },\n});\n",
    );
    const error = await refusal(load('rcm.config.ts', true));
    expect(error.code).toBe('E_CONFIG_TYPES');
    expect(error.message).toMatch(/^rcm\.config\.ts:3:15: Type 'string' is not assignable to type 'number/);
    expect((await refusal(load('rcm.config.ts'))).code).toBe('E_CONFIG_VALUE');
  });

  it('names the line of a syntax error, and what it throws', async () => {
    write('rcm.config.ts', 'export default {\n  seed: ,\n};\n');
    expect(await refusal(load('rcm.config.ts'))).toMatchObject({
      code: 'E_CONFIG_SYNTAX',
      message: expect.stringMatching(/^rcm\.config\.ts:2:9: /),
    });
    write('thrown.ts', "throw new Error('no luck');\nexport default {};\n");
    expect(await refusal(load('thrown.ts'))).toMatchObject({
      code: 'E_CONFIG_SYNTAX',
      message: 'thrown.ts: it does not load: no luck.',
    });
    write('missing.ts', "import { x } from './nowhere.ts';\nexport default { seed: x };\n");
    expect((await refusal(load('missing.ts'))).code).toBe('E_CONFIG_SYNTAX');
    write('none.ts', 'export const seed = 1;\n');
    expect(await refusal(load('none.ts'))).toMatchObject({
      code: 'E_CONFIG_SYNTAX',
      message: expect.stringContaining('block of keys'),
    });
  });

  it('leaves JavaScript to Node', async () => {
    write('rcm.config.mjs', "export default { extends: 'digits-rcm', seed: 3 };\n");
    expect((await load('rcm.config.mjs')).config.seed).toBe(3);
  });

  it('can rely on the interface of the installed TypeScript', () => {
    const typescript = createRequire(import.meta.url)('typescript') as { sys?: object; preProcessFile?: unknown };
    expect(typescript.sys).toBeTypeOf('object');
    expect(typescript.preProcessFile).toBeTypeOf('function');
  });
});
