import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, realpathSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { installDevTools } from '../../../src/python/dev-tools.ts';
import { resolvePython } from '../../../src/python/find.ts';
import { setupManaged, setupMedia } from '../../../src/python/provision.ts';

// Needs the network and the disk space of a whole environment: 2.5 GB, or 8 GB where torch comes with CUDA.
let root = '';
let env: Record<string, string | undefined> = {};
beforeAll(() => {
  root = realpathSync(mkdtempSync(join(tmpdir(), 'rcm-real-')));
  const { VIRTUAL_ENV: _venv, CONDA_PREFIX: _conda, RCM_BRIDGE_PYTHON: _python, ...rest } = process.env;
  env = { ...rest, RCM_BRIDGE_HOME: join(root, 'home') };
});
// Thousands of files on a busy disk.
afterAll(() => rm(root, { recursive: true, force: true }), 300_000);

it('makes a real environment, uses it again without pip or network, and adds the tools beside it', {
  timeout: 900_000,
}, async () => {
  const options = { consent: true, env, cwd: root };
  const made = await setupManaged(options);
  const python =
    'import json, torch, numpy, zmq, msgspec, safetensors; print(json.dumps([torch.__version__, numpy.__version__]))';
  const [torch, numpy] = JSON.parse(execFileSync(made.executable, ['-I', '-c', python], { encoding: 'utf8' })) as [
    string,
    string,
  ];
  expect(torch).toMatch(/^2\.11\.0/);
  expect(numpy).toBe(made.packages.numpy);
  const seal = JSON.parse(readFileSync(join(dirname(dirname(made.executable)), 'environment.json'), 'utf8'));
  expect(seal).toMatchObject({ schema: 1, torchChoice: 'auto', packages: made.packages });

  const started = Date.now();
  expect(await setupManaged({ ...options, consent: false, offline: true })).toEqual(made);
  expect(await resolvePython({ env, cwd: root })).toEqual(made);
  expect(Date.now() - started).toBeLessThan(2_000);

  const media = await setupMedia(options);
  const paths =
    'import torch, numpy, diffusers, transformers, huggingface_hub, webdataset, av, ftfy; print(torch.__file__, av.__file__)';
  const [torchFile, avFile] = execFileSync(media.executable, ['-I', '-c', paths], { encoding: 'utf8' }).split(' ');
  expect(torchFile).toContain(dirname(dirname(made.executable)));
  expect(avFile).toContain(dirname(dirname(media.executable)));
  expect(await setupMedia({ ...options, consent: false, offline: true })).toEqual(media);

  const target = join(root, 'tools');
  await installDevTools({ python: made, target, env });
  const version = execFileSync(made.executable, ['-m', 'pytest', '--version'], {
    encoding: 'utf8',
    env: { ...process.env, PYTHONPATH: target },
  });
  expect(version).toContain('pytest');
});
