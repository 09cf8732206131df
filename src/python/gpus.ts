import { execFile } from 'node:child_process';

const answerTimeoutMs = 10_000;

/** The NVIDIA GPUs of this machine as `nvidia-smi -L` names them; none where there is no driver. */
export const listGpus = (): Promise<readonly string[]> =>
  new Promise(settle => {
    execFile('nvidia-smi', ['-L'], { timeout: answerTimeoutMs }, (error, stdout) =>
      settle(error ? [] : stdout.split('\n').flatMap(line => /^GPU \d+: ([^(]+)/.exec(line)?.[1]?.trim() ?? [])),
    );
  });
