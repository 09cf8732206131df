import { describe, expect, it } from 'vitest';
import { describeError, usesColour } from '../../../src/cli/output.ts';
import { errorCodes, RcmBridgeError } from '../../../src/errors/index.ts';

describe('usesColour', () => {
  it.each([
    [{}, true, true],
    [{}, false, false],
    [{ NO_COLOR: '1' }, true, false],
    [{ NO_COLOR: '1', FORCE_COLOR: '1' }, true, false],
    [{ FORCE_COLOR: '1' }, false, true],
    [{ FORCE_COLOR: '0' }, true, false],
    [{ CI: 'true' }, true, false],
  ])('with %j and terminal %s is %s', (env, terminal, colour) => {
    expect(usesColour(env, terminal)).toBe(colour);
  });
});

describe('describeError', () => {
  it('is one line for what is wrong and one for the fix, however many the message has', () => {
    const error = new RcmBridgeError('E_USAGE', 'first\n  second', { hint: 'do\nthis' });
    expect(describeError(error, 0)).toBe('E_USAGE: first second\ndo this');
  });

  it("gives the fix of the code where the error has none, as Python's errors may", () => {
    expect(describeError(new RcmBridgeError('E_USAGE', 'no'), 0)).toBe(`E_USAGE: no\n${errorCodes.E_USAGE.fix}`);
  });

  it('names the help of the command for a usage error that has no fix, and for no other error', () => {
    const described = (code: 'E_USAGE' | 'E_GPU', hint?: string): string | undefined =>
      describeError(new RcmBridgeError(code, 'no', { hint }), 0, false, 'See this.').split('\n')[1];
    expect(described('E_USAGE')).toBe('See this.');
    expect(described('E_USAGE', 'Do that.')).toBe('Do that.');
    expect(described('E_GPU')).toBe(errorCodes.E_GPU.fix);
  });

  it('shows the code in colour only when asked', () => {
    const error = new RcmBridgeError('E_USAGE', 'no', { hint: 'yes' });
    expect(describeError(error, 0, true)).toBe('\u001b[1;31mE_USAGE\u001b[0m: no\nyes');
  });

  it('never shows a stack line without -v', () => {
    expect(describeError(new TypeError('broken'), 0)).not.toMatch(/\n\s+at /);
    expect(describeError(new TypeError('broken'), 1)).toMatch(/\n\s+at /);
  });
});
