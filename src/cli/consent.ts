import { createInterface } from 'node:readline/promises';

/** Is a RCM_BRIDGE_* switch on? */
export const isOn = (value: string | undefined): boolean => value !== undefined && /^(1|true|yes)$/i.test(value);

/** One question on the terminal; without a terminal the answer is no. */
export async function askOnTerminal(question: string): Promise<boolean> {
  if (!process.stdin.isTTY || !process.stderr.isTTY) return false;
  const terminal = createInterface({ input: process.stdin, output: process.stderr });
  try {
    return /^y(es)?$/i.test((await terminal.question(`${question} [y/N] `)).trim());
  } finally {
    terminal.close();
  }
}
