import { mkdirSync, mkdtempSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { locateWeights } from '../../../src/runs/weights.ts';
import { cachedSnapshot, hubLocatorText, parseHubLocator } from '../../../src/weights/hub-cache.ts';

const commit = '0123456789abcdef0123456789abcdef01234567';
let root = '';
beforeEach(() => {
  root = realpathSync(mkdtempSync(join(tmpdir(), 'rcm-hub-')));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

function keep(cache: string, file: string): string {
  const folder = join(cache, 'models--a--b');
  mkdirSync(join(folder, 'refs'), { recursive: true });
  writeFileSync(join(folder, 'refs', 'main'), commit);
  const path = join(folder, 'snapshots', commit, file);
  mkdirSync(join(path, '..'), { recursive: true });
  writeFileSync(path, '');
  return join(folder, 'snapshots', commit);
}

it('reads locators as Python does', () => {
  expect(parseHubLocator('hf:Wan-AI/Wan2.1-T2V-1.3B')).toEqual({
    repository: 'Wan-AI/Wan2.1-T2V-1.3B',
    revision: 'main',
  });
  expect(hubLocatorText(parseHubLocator('hf:a/b@refs/pr/1'))).toBe('hf:a/b@refs/pr/1');
  for (const odd of ['hf:', 'hf:a', 'hf:a/b/c', 'hf:a/b@', 'hf:../b', 'hf:a/b@../../x', 'hf:a/b@x/../y']) {
    expect(() => parseHubLocator(odd), odd).toThrow(/names no repository/);
  }
});

it('finds a copy by branch and by commit, in the cache that the variables name', () => {
  const branch = parseHubLocator('hf:a/b');
  for (const [env, cache] of [
    [{ HF_HUB_CACHE: join(root, 'x'), HF_HOME: join(root, 'no') }, join(root, 'x')],
    [{ HF_HOME: '~/y', HOME: root }, join(root, 'y', 'hub')],
    [{ XDG_CACHE_HOME: join(root, 'z') }, join(root, 'z', 'huggingface', 'hub')],
    [{ HOME: root }, join(root, '.cache', 'huggingface', 'hub')],
  ] as const) {
    expect(cachedSnapshot(branch, env)).toBeUndefined();
    const snapshot = keep(cache, 'transformer/a.safetensors');
    expect(cachedSnapshot(branch, env)).toBe(snapshot);
    expect(locateWeights(`hf:a/b@${commit}`, undefined, env)).toBe(snapshot);
  }
});

it('takes no copy without weights, and says how to fetch them', () => {
  keep(root, 'config.json');
  expect(() => locateWeights('hf:a/b@v1', undefined, { HF_HUB_CACHE: root })).toThrow(
    expect.objectContaining({ code: 'E_WEIGHTS_NOT_FOUND', hint: 'Fetch it: rcm-bridge weights fetch hf:a/b@v1' }),
  );
  expect(() => locateWeights('hf:a/b', undefined, { HF_HUB_CACHE: root })).toThrow(/not on this machine/);
});
