import { resolve } from 'node:path';
import { describe, expect, it } from 'vitest';
import { nameOfRun } from '../../../src/cli/run-name.ts';

describe('nameOfRun', () => {
  it('is the id in the folder that commands look in, and the path elsewhere', () => {
    expect(nameOfRun('a-1', resolve('runs/a-1'), {})).toBe('a-1');
    expect(nameOfRun('a-1', resolve('runs/other'), {})).toBe(resolve('runs/other'));
    expect(nameOfRun('a-1', '/data/a-1', {})).toBe('/data/a-1');
    expect(nameOfRun('a-1', '/data/a-1', { RCM_BRIDGE_RUNS_DIR: '/data' })).toBe('a-1');
  });

  it('is quoted for a shell where it has to be', () => {
    expect(nameOfRun('a-1', "/it's here/a-1", {})).toBe("'/it'\\''s here/a-1'");
  });
});
