import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { writeStackDump } from '../../../src/runs/run-errors.ts';

const hang = {
  kind: 'noStep',
  activity: 'training',
  step: 12,
  stack: 'Current thread (most recent call first):',
} as const;

it('gathers the stacks of all ranks, in their order', () => {
  const runDir = mkdtempSync(join(tmpdir(), 'rcm-dump-'));
  try {
    mkdirSync(join(runDir, 'logs'));
    writeFileSync(join(runDir, 'logs', 'sidecar.log'), 'rank 0 writes here');
    for (const rank of [10, 2])
      writeFileSync(join(runDir, 'logs', `rank-${rank}.log`), `${'x'.repeat(20_000)}stack ${rank}`);
    writeStackDump(runDir, hang);
    const text = readFileSync(join(runDir, 'diagnostics', 'hang-step-00000012.txt'), 'utf8');
    expect(text).toMatch(/^noStep while training\n\nRank 0\nCurrent thread/);
    expect(text.indexOf('stack 2')).toBeLessThan(text.indexOf('stack 10'));
    expect(text).toContain('Rank 2 (end of logs/rank-2.log)');
    expect(text.length).toBeLessThan(40_000);
  } finally {
    rmSync(runDir, { recursive: true, force: true });
  }
});

it('needs no other ranks', () => {
  const runDir = mkdtempSync(join(tmpdir(), 'rcm-dump-'));
  try {
    writeStackDump(runDir, hang);
    expect(readFileSync(join(runDir, 'diagnostics', 'hang-step-00000012.txt'), 'utf8')).toContain(hang.stack);
  } finally {
    rmSync(runDir, { recursive: true, force: true });
  }
});
