import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { packageRoot } from '../../src/package-root.ts';

const makefile = readFileSync(join(packageRoot(), 'Makefile'), 'utf8');

it('runs only scripts that are there and that bash can parse', () => {
  const scripts = [...makefile.matchAll(/scripts\/[\w-]+\.\w+/g)].map(([path]) => join(packageRoot(), path));
  expect(scripts.length).toBeGreaterThan(3);
  expect(scripts.filter(path => !existsSync(path))).toEqual([]);
  for (const path of scripts.filter(name => name.endsWith('.sh'))) execFileSync('bash', ['-n', path]);
});

it('prints every target when none is named', () => {
  const printed = execFileSync('make', ['--no-print-directory'], { cwd: packageRoot(), encoding: 'utf8' });
  const phony = /^\.PHONY: (.*)$/m.exec(makefile)?.[1]?.split(' ') ?? [];
  expect(phony.filter(target => !printed.includes(`  ${target} `))).toEqual([]);
});
