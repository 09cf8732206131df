import { execFileSync } from 'node:child_process';
import { describe, expect, it } from 'vitest';
import { cliFile } from '../cli.ts';

const tries = 20;

function medianMs(words: readonly string[]): number {
  const times = Array.from({ length: tries }, () => {
    const started = process.hrtime.bigint();
    execFileSync(process.execPath, words, { stdio: 'ignore' });
    return Number(process.hrtime.bigint() - started) / 1e6;
  }).sort((a, b) => a - b);
  return times[tries / 2] ?? Number.NaN;
}

describe('start-up', () => {
  it(`takes at most 60 ms more than node for --version and 250 ms more for --help (median of ${tries})`, () => {
    const bare = medianMs(['-e', '0']);
    const version = medianMs([cliFile, '--version']);
    const help = medianMs([cliFile, '--help']);
    process.stdout.write(
      `node ${bare.toFixed(0)} ms, --version ${version.toFixed(0)} ms, --help ${help.toFixed(0)} ms\n`,
    );
    expect(version - bare).toBeLessThan(60);
    expect(help - bare).toBeLessThan(250);
  });
});
