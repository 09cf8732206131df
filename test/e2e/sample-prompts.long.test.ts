import { spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { PNG } from 'pngjs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { runCli, temporaryFolder } from '../cli.ts';
import { pythonWithDevTools } from '../python-with-dev-tools.ts';
import { makeTinyModels } from '../tiny-models.ts';

let folder: Awaited<ReturnType<typeof temporaryFolder>>;
let env: NodeJS.ProcessEnv = {};
beforeAll(async () => {
  folder = await temporaryFolder();
  env = { RCM_BRIDGE_PYTHON: pythonWithDevTools(join(folder.path, 'python')) };
  makeTinyModels(folder.path, ['wan_diffusers', 'cosmos_original', 'cosmos_diffusers']);
}, 300_000);
afterAll(() => folder.remove());

const size = ['--height', '32', '--width', '48', '--device', 'cpu'];

describe('sample with prompts', () => {
  it.each(['cosmos_original', 'cosmos_diffusers'])(
    'draws pictures with the guided teacher of %s',
    async name => {
      const words = ['--prompt', 'a cat', '--teacher', '--steps', '2', '--seed', '9', '--out', `of-${name}`];
      const drawn = await runCli(['sample', `./${name}`, ...words, ...size], {
        cwd: folder.path,
        env,
        timeoutMs: 150_000,
      });
      expect(drawn.code, drawn.stderr).toBe(0);
      expect(drawn.stdout).toBe(`${join(folder.path, `of-${name}`, 'a-cat-seed9-2steps-teacher.png')}\n`);
      const { width, height, data } = PNG.sync.read(readFileSync(drawn.stdout.trim()));
      expect([width, height]).toEqual([48, 32]);
      expect(new Set(data).size).toBeGreaterThan(20);
    },
    120_000,
  );

  it('stops at Ctrl-C in the middle of sampling, without leaving half a file or a process', async () => {
    const words = ['--prompts', 'builtin:video-8', '--teacher', '--steps', '20000', '--frames', '5', ...size];
    let sidecars: readonly string[] = [];
    const { code, stdout, stderr } = await runCli(['sample', './wan_diffusers', ...words, '--out', 'stopped'], {
      cwd: folder.path,
      env,
      timeoutMs: 110_000,
      onSpawn: child => {
        child.stderr?.on('data', chunk => {
          if (!String(chunk).includes('sampling') || sidecars.length > 0) return;
          const listed = spawn('ps', ['-o', 'pid=', '--ppid', String(child.pid)]);
          listed.stdout.on('data', pids => {
            sidecars = String(pids).trim().split(/\s+/);
          });
          listed.once('close', () => child.kill('SIGINT'));
        });
      },
    });
    expect({ code, stdout }, stderr).toEqual({ code: 130, stdout: '' });
    expect(stderr).toContain('Stopped; files that were complete stay.');
    expect(readdirSync(folder.path)).not.toContain('stopped');
    expect(sidecars.length).toBeGreaterThan(0);
    for (const pid of sidecars) expect(() => process.kill(Number(pid), 0)).toThrow(/ESRCH/);
  }, 300_000);
});
