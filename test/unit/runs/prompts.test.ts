import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { readPrompts } from '../../../src/runs/prompts.ts';

let folder = '';
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'rcm-prompts-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const read = (content: string): readonly string[] => {
  writeFileSync(join(folder, 'list.txt'), content);
  return readPrompts('list.txt', folder);
};

describe('a prompt list', () => {
  it('has one prompt a line, whatever ends it', () => {
    expect(read('\uFEFFa cat\r\n\n  a "mat", # red  \n')).toEqual(['a cat', 'a "mat", # red']);
  });

  it.each(['', '\n \r\n\t\n', '\uFEFF'])('without a prompt is refused: %j', content => {
    expect(() => read(content)).toThrow(/list\.txt holds no prompts/);
  });

  it('that is missing is named', () => {
    expect(() => readPrompts('nowhere.txt', folder)).toThrow(/prompts .*nowhere\.txt cannot be read/);
    expect(() => readPrompts('.', folder)).toThrow(/cannot be read/);
  });

  it.each(['builtin:video-8', 'builtin:image-8'])('%s is shipped, with eight different ones', name => {
    const prompts = readPrompts(name, folder);
    expect(new Set(prompts).size).toBe(8);
    expect(prompts).toHaveLength(8);
    for (const prompt of prompts) expect(prompt.length).toBeGreaterThan(60);
  });

  it('that is not shipped gets the nearest', () => {
    expect(() => readPrompts('builtin:video8', folder)).toThrow(
      expect.objectContaining({ code: 'E_USAGE', hint: 'Did you mean builtin:video-8?' }),
    );
    expect(() => readPrompts('builtin:../../digits', folder)).toThrow(/no prompts/);
  });
});
