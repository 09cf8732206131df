import { execFileSync } from 'node:child_process';
import { describe, expect, it } from 'vitest';
import { cliFile } from '../cli.ts';

const tries = 20;

/** The limits hold where a bare Node starts in this time; on a machine that is busier just now they grow with it. */
const bareReferenceMs = 45;

const commands = { bare: ['-e', '0'], version: [cliFile, '--version'], help: [cliFile, '--help'] } as const;

function startMs(words: readonly string[]): number {
  const started = process.hrtime.bigint();
  execFileSync(process.execPath, words, { stdio: 'ignore' });
  return Number(process.hrtime.bigint() - started) / 1e6;
}

const median = (times: readonly number[]): number => [...times].sort((a, b) => a - b)[times.length >> 1] ?? Number.NaN;

describe('start-up', () => {
  it(`takes at most 60 ms more than node for --version and 250 ms more for --help (median of ${tries})`, () => {
    // In turn, so that all three meet the same load.
    const rounds = Array.from({ length: tries }, () => ({
      bare: startMs(commands.bare),
      version: startMs(commands.version),
      help: startMs(commands.help),
    }));
    const bare = median(rounds.map(round => round.bare));
    const version = median(rounds.map(round => round.version - round.bare));
    const help = median(rounds.map(round => round.help - round.bare));
    process.stdout.write(`node ${bare.toFixed(0)} ms, --version +${version.toFixed(0)}, --help +${help.toFixed(0)}\n`);
    const slowness = Math.max(1, bare / bareReferenceMs);
    expect(version).toBeLessThan(60 * slowness);
    expect(help).toBeLessThan(250 * slowness);
  });
});
