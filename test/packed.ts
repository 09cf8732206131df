import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { packageRoot } from '../src/package-root.ts';

/** Packs the package as `npm publish` would, without running scripts, and returns the tarball's path. */
export function pack(into: string): string {
  execFileSync('npm', ['pack', '--ignore-scripts', '--pack-destination', into], { cwd: packageRoot(), stdio: 'pipe' });
  const tarball = readdirSync(into).find(name => name.endsWith('.tgz'));
  if (tarball === undefined) throw new Error(`npm pack left no tarball in ${into}`);
  return join(into, tarball);
}

/** Lists the files of a tarball, without the leading `package/`. */
export function filesOf(tarball: string): string[] {
  const listing = execFileSync('tar', ['-tzf', tarball], { encoding: 'utf8' });
  return listing
    .split('\n')
    .filter(name => name && !name.endsWith('/'))
    .map(name => name.replace(/^package\//, ''));
}

/**
 * Lays a tarball out as an installation without scripts would, taking the dependencies that are installed here:
 * the same files as `npm install --ignore-scripts`, and no network. The long test installs for real.
 */
export function layOut(tarball: string, project: string): void {
  const target = join(project, 'node_modules', 'rcm-bridge');
  mkdirSync(target, { recursive: true });
  execFileSync('tar', ['-xzf', tarball, '-C', target, '--strip-components=1']);
  const listed = execFileSync('npm', ['ls', '--omit=dev', '--all', '--parseable'], {
    cwd: packageRoot(),
    encoding: 'utf8',
  });
  const modules = join(packageRoot(), 'node_modules');
  for (const path of listed.split('\n').filter(line => line.startsWith(`${modules}/`))) {
    cpSync(path, join(project, 'node_modules', path.slice(modules.length + 1)), { recursive: true });
  }
}
