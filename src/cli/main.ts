import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { packageRoot } from '../package-root.ts';

/**
 * Runs the command line and sets `process.exitCode`.
 * `--version` alone loads nothing else: it is what scripts and editors call most.
 */
export async function main(argv: readonly string[]): Promise<void> {
  if (argv.length === 1 && argv[0] === '--version') {
    process.stdout.write(`${packageVersion()}\n`);
    return;
  }
  const { run } = await import('./program.ts');
  process.exitCode = await run(argv);
}

export function packageVersion(): string {
  const manifest = JSON.parse(readFileSync(join(packageRoot(), 'package.json'), 'utf8')) as { version: string };
  return manifest.version;
}
