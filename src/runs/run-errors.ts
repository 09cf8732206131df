/** Errors of a run, in the forms its parts need. */
import fs from 'node:fs';
import { join } from 'node:path';
import { type Hang, type SidecarExit, sidecarExitError } from '../bridge/sidecar.ts';
import { isRcmBridgeError, RcmBridgeError } from '../errors/index.ts';
import { makeDirectory, writeFileAtomic } from './files.ts';
import type { RunErrorRecord } from './record.ts';
import { stepName } from './run-id.ts';

/** A sidecar that ended by itself, or by the bridge, which then says why. */
export function lostError(exit: SidecarExit, runDir: string): RcmBridgeError {
  const hint = `See ${join(runDir, 'logs', 'sidecar.log')}, then go on with \`rcm-bridge resume\`.`;
  const { code, message, details } = sidecarExitError(exit);
  const last = exit.error ? undefined : exit.stderrTail.trim().split('\n').at(-1)?.trim();
  const whole = last ? `${message} Its last line: ${last}` : message;
  return new RcmBridgeError(code, whole, { hint, details, cause: exit.error });
}

/** What every process was doing when one hung, for people: diagnostics/hang-step-XXXXXXXX.txt. */
export function writeStackDump(runDir: string, hang: Hang): void {
  const folder = join(runDir, 'diagnostics');
  makeDirectory(folder);
  const text = `${hang.kind} while ${hang.activity}\n\nRank 0\n${hang.stack}\n${otherStacks(join(runDir, 'logs'))}`;
  writeFileAtomic(join(folder, `hang-${stepName(hang.step)}.txt`), text);
}

const stackBytes = 16 * 1024;

/** The ends of the other ranks' logs, where they have just printed their stacks. */
function otherStacks(logs: string): string {
  if (!fs.existsSync(logs)) return '';
  const numbers = fs.readdirSync(logs).flatMap(name => /^rank-(\d+)\.log$/.exec(name)?.[1] ?? []);
  return numbers
    .sort((left, right) => Number(left) - Number(right))
    .map(rank => {
      const text = fs
        .readFileSync(join(logs, `rank-${rank}.log`))
        .subarray(-stackBytes)
        .toString('utf8');
      return `\nRank ${rank} (end of logs/rank-${rank}.log)\n${text}\n`;
    })
    .join('');
}

/** The part of an error that run.json and `end` hold. */
export const errorRecord = ({ code, message, hint }: RcmBridgeError): RunErrorRecord => ({
  code,
  message,
  ...(hint === undefined ? {} : { hint }),
});

export function asError(error: unknown): RcmBridgeError {
  if (isRcmBridgeError(error)) return error;
  const hint = 'See logs/owner.log in the run directory.';
  return new RcmBridgeError('E_INTERNAL', messageOf(error), { cause: error, hint });
}

export const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));
