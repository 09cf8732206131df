// Installs the tools for testing into .dev/, for the interpreter that `rcm-bridge env path` prints. Called by make.
import { join } from 'node:path';
import { packageRoot } from '../dist/package-root.js';
import { installDevTools, resolvePython } from '../dist/python/index.js';

const say = line => process.stderr.write(`${line}\n`);
try {
  const python = await resolvePython({ env: process.env, cwd: process.cwd() });
  await installDevTools({ python, target: join(packageRoot(), '.dev'), env: process.env, onLine: say });
} catch (error) {
  say(`${error.code ?? 'E_INTERNAL'}: ${error.message}`);
  if (error.hint) say(error.hint);
  process.exitCode = error.exitCode ?? 1;
}
