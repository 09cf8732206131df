import { createHash } from 'node:crypto';
import { appendFileSync, mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { findCheckpoint, listCheckpoints, shareCheckpoint } from '../../../src/runs/checkpoints.ts';
import { writeCheckpoint } from '../../integration/fake-run.ts';

let runDir: string;
beforeEach(() => {
  runDir = mkdtempSync(join(tmpdir(), 'rcm-checkpoints-'));
});
afterEach(() => rmSync(runDir, { recursive: true, force: true }));

const folder = (step: number): string => join(runDir, 'checkpoints', `step-${String(step).padStart(8, '0')}`);
const weights = (step: number): string => join(folder(step), 'student.safetensors');

describe('checkpoints', () => {
  test('without a valid manifest do not exist', async () => {
    for (const step of [10, 9, 200]) writeCheckpoint(folder(step), step);
    mkdirSync(folder(300), { recursive: true });
    writeFileSync(join(folder(300), 'manifest.json'), '{"schema":1,');
    mkdirSync(`${folder(400)}.tmp`);
    expect(listCheckpoints(runDir).map(({ step }) => step)).toEqual([9, 10, 200]);
    expect((await findCheckpoint(runDir)).path).toBe(folder(200));
    expect((await findCheckpoint(runDir, 9)).step).toBe(9);
  });

  test('that are damaged are named, and the newest older one that is whole is offered', async () => {
    for (const step of [1, 2, 3, 4]) writeCheckpoint(folder(step), step);
    writeFileSync(weights(4), 'weights of step 5');
    appendFileSync(weights(3), 'x');
    rmSync(weights(2));
    const corrupt = { code: 'E_CHECKPOINT_CORRUPT', exitCode: 5 };
    const offer = { hint: expect.stringContaining('--from-step 1 ') };
    await expect(findCheckpoint(runDir)).rejects.toMatchObject({
      ...corrupt,
      ...offer,
      message: expect.stringContaining(`${weights(4)} does not match its sha256`),
    });
    await expect(findCheckpoint(runDir, 3)).rejects.toMatchObject({
      ...offer,
      message: expect.stringMatching(/step 3.*18 bytes instead of 17/),
    });
    expect((await findCheckpoint(runDir, 1)).step).toBe(1);
    writeFileSync(weights(1), '');
    await expect(findCheckpoint(runDir, 2)).rejects.toMatchObject({
      ...corrupt,
      message: expect.stringContaining('is missing'),
      hint: expect.stringContaining('distill'),
    });
  });

  test('are shared with another run without a copy, and missing when they are pruned meanwhile', () => {
    writeCheckpoint(folder(1), 1);
    const [checkpoint] = listCheckpoints(runDir);
    const other = join(runDir, 'child');
    if (checkpoint) shareCheckpoint(checkpoint, other);
    expect(listCheckpoints(other).map(({ step, manifest }) => ({ step, manifest }))).toEqual([
      { step: 1, manifest: checkpoint?.manifest },
    ]);
    expect(statSync(join(other, 'checkpoints', 'step-00000001', 'student.safetensors')).nlink).toBe(2);
    rmSync(weights(1));
    expect(() => checkpoint && shareCheckpoint(checkpoint, join(runDir, 'late'))).toThrow(
      expect.objectContaining({ code: 'E_CHECKPOINT_MISSING' }),
    );
  });

  test('that are missing are named with those that exist', async () => {
    await expect(findCheckpoint(runDir)).rejects.toMatchObject({ code: 'E_CHECKPOINT_MISSING' });
    writeCheckpoint(folder(7), 7);
    await expect(findCheckpoint(runDir, 8)).rejects.toMatchObject({ hint: 'Steps with a checkpoint: 7.' });
  });

  test('cannot point outside their folder', () => {
    writeCheckpoint(folder(1), 1);
    const listed = (name: string): number => {
      const files = { [name]: { size: 1, sha256: '' } };
      writeFileSync(join(folder(1), 'manifest.json'), JSON.stringify({ schema: 1, step: 1, files }));
      return listCheckpoints(runDir).length;
    };
    for (const name of ['state.json', 'student/shard.safetensors']) expect(listed(name)).toBe(1);
    for (const name of ['../../run.json', '..', 'student/../x', '/run.json', 'a/b/c', 'a\\b', 'student/']) {
      expect(listed(name)).toBe(0);
    }
  });

  test('are checked in their folders', async () => {
    writeCheckpoint(folder(1), 1);
    const shard = 'ema-0/shard-00001.safetensors';
    mkdirSync(join(folder(1), 'ema-0'));
    writeFileSync(join(folder(1), shard), 'abc');
    const sha256 = createHash('sha256').update('abc').digest('hex');
    const files = { [shard]: { size: 3, sha256 } };
    writeFileSync(join(folder(1), 'manifest.json'), JSON.stringify({ schema: 1, step: 1, files }));
    expect((await findCheckpoint(runDir)).step).toBe(1);
    writeFileSync(join(folder(1), shard), 'abd');
    await expect(findCheckpoint(runDir)).rejects.toMatchObject({ code: 'E_CHECKPOINT_CORRUPT' });
  });
});
