import { describe, expect, it } from 'vitest';
import { openPython } from '../../src/python/interactive.ts';
import { testPython } from '../python.ts';

describe('openPython', () => {
  it('copies plain values, also those that end the Node side of pythonia when they cross as they are', async () => {
    await using python = await openPython({ executable: testPython() });
    const math = await python.import('math');
    expect(await (await math.get('nan')).value()).toBeNaN();
    expect(await (await math.get('inf')).value()).toBe(Number.POSITIVE_INFINITY);
    const factorial = await math.get('factorial');
    expect(await (await factorial.call([25])).value()).toBe(15511210043330985984000000n);
    const builtins = await python.import('builtins');
    const bytes = await (await builtins.get('bytes')).call([[1, 2, 255]]);
    expect(await bytes.value()).toEqual(new Uint8Array([1, 2, 255]));
    const dict = await (await builtins.get('dict')).call([], { a: 1, b: [Number.NaN, null] });
    expect(await dict.value()).toEqual({ a: 1, b: [Number.NaN, null] });
    expect(await (await dict.item('a')).text()).toBe('1');
  });

  it('gives references back as arguments and copies tensors', async () => {
    await using python = await openPython({ executable: testPython() });
    const torch = await python.import('torch');
    const ones = await (await torch.get('ones')).call([2, 3]);
    const sum = await (await torch.get('sum')).call([ones]);
    expect(await sum.value()).toBe(6);
    expect(await ones.value()).toEqual([
      [1, 1, 1],
      [1, 1, 1],
    ]);
  });

  it("rejects with Python's type and frames, and goes on", async () => {
    await using python = await openPython({ executable: testPython() });
    const json = await python.import('json');
    const loads = await json.get('loads');
    await expect(loads.call(['{'])).rejects.toMatchObject({ name: 'PythonError', pythonType: 'JSONDecodeError' });
    expect(await (await loads.call(['[1]'])).value()).toEqual([1]);
    await expect(json.value()).rejects.toMatchObject({ pythonType: 'TypeError' });
  });

  it('rejects with E_INTERACTIVE_EXIT when Python ends in a call', async () => {
    const python = await openPython({ executable: testPython() });
    const os = await python.import('os');
    const exit = await os.get('_exit');
    await expect(exit.call([3])).rejects.toMatchObject({ code: 'E_INTERACTIVE_EXIT' });
    await python.close();
  });

  it('rejects with E_INTERACTIVE_EXIT when there is no such interpreter', async () => {
    await expect(openPython({ executable: '/nowhere/python' })).rejects.toMatchObject({ code: 'E_INTERACTIVE_EXIT' });
  });
});
