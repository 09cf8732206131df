import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { inspect } from 'node:util';
import { describe, expect, it, vi } from 'vitest';
import { errorsDocument } from '../../../src/errors/document.ts';
import {
  AbortedError,
  errorCodes,
  isRcmBridgeError,
  PythonError,
  type PythonErrorBody,
  RcmBridgeError,
  RunFailedError,
  throwIfAborted,
} from '../../../src/errors/index.ts';
import { packageRoot } from '../../../src/package-root.ts';

const body: PythonErrorBody = {
  code: 'E_NON_FINITE',
  message: 'the loss is NaN',
  hint: 'lower the learning rate',
  chain: [
    {
      type: 'TrainingError',
      message: 'the loss is NaN',
      frames: [{ file: 'a.py', line: 3, function: 'step', text: 'f()' }],
    },
    { type: 'ValueError', message: 'inner', frames: [] },
  ],
  traceback: 'Traceback ...',
  step: 12,
  details: { phase: 'student' },
};

describe('RcmBridgeError', () => {
  it('takes its exit code from the table and serialises without a stack', () => {
    const error = new RcmBridgeError('E_CONFIG_VALUE', 'wrong', {
      hint: 'mend it',
      details: { path: 'seed' },
      cause: new Error('why'),
    });
    expect(error.exitCode).toBe(2);
    expect(JSON.parse(JSON.stringify(error))).toEqual({
      name: 'RcmBridgeError',
      code: 'E_CONFIG_VALUE',
      exitCode: 2,
      message: 'wrong',
      hint: 'mend it',
      details: { path: 'seed' },
      cause: { name: 'Error', message: 'why' },
    });
  });

  it('is recognised across two copies of the package', async () => {
    vi.resetModules();
    const copy = await import('../../../src/errors/index.ts');
    const error = new copy.RcmBridgeError('E_USAGE', 'x');
    expect(error).not.toBeInstanceOf(RcmBridgeError);
    expect(isRcmBridgeError(error)).toBe(true);
    for (const other of [new Error('x'), null, undefined, 'E_USAGE', { code: 'E_USAGE' }])
      expect(isRcmBridgeError(other)).toBe(false);
  });

  it('keeps the reason of an abort as its cause', () => {
    const reason = new Error('shutdown');
    expect(() => throwIfAborted(AbortSignal.abort(reason))).toThrow(
      expect.objectContaining({ code: 'E_ABORTED', cause: reason }),
    );
    expect(() => throwIfAborted(undefined)).not.toThrow();
    expect(new AbortedError(reason).exitCode).toBe(130);
  });

  it('names the run that failed', () => {
    const error = new RunFailedError('E_SIDECAR_EXIT', 'gone', {
      runId: 'r',
      runDir: '/runs/r',
      cause: new PythonError(body),
    });
    expect(error.toJSON()).toMatchObject({
      runId: 'r',
      runDir: '/runs/r',
      exitCode: 4,
      cause: { code: 'E_NON_FINITE' },
    });
  });
});

describe('PythonError', () => {
  it('carries type, frames, step and the chain', () => {
    const error = new PythonError(body);
    expect(error).toMatchObject({
      code: 'E_NON_FINITE',
      exitCode: 1,
      pythonType: 'TrainingError',
      hint: 'lower the learning rate',
    });
    expect(error.details).toEqual({ phase: 'student', step: 12 });
    expect(error.cause).toMatchObject({ pythonType: 'ValueError', message: 'inner' });
    expect(error.stack).toMatch(/--- Python ---\n {4}at step \(a\.py:3\)$/);
    expect(inspect(error)).toContain('[cause]');
  });

  it('keeps an unknown code out', () => {
    expect(new PythonError({ ...body, code: 'E_NEW' }).code).toBe('E_TRAINING');
    expect(new PythonError({ ...body, message: '', chain: [] }).message).not.toBe('');
  });
});

describe('error codes', () => {
  it('are alphabetical', () => {
    expect(Object.keys(errorCodes)).toEqual(Object.keys(errorCodes).toSorted());
  });

  it('have docs/errors.md generated from them (npm run generate)', async () => {
    await expect(errorsDocument()).toMatchFileSnapshot(join(packageRoot(), 'docs/errors.md'));
  });

  it('cover every code that src/, bin/ and py/ use', () => {
    const used = new Set(['src', 'bin', 'py'].flatMap(folder => codesIn(join(packageRoot(), folder))));
    expect([...used].filter(code => !Object.hasOwn(errorCodes, code))).toEqual([]);
    expect(used.size).toBeGreaterThan(10);
  });
});

function codesIn(folder: string): string[] {
  const files = readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter(name => /\.(ts|js|py)$/.test(name));
  return files.flatMap(name =>
    [...readFileSync(join(folder, name), 'utf8').matchAll(/['"](E_[A-Z_]+)['"]/g)].map(match => match[1] ?? ''),
  );
}
