import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { configSchema } from '../../../src/config/blocks/index.ts';
import { checkHost } from '../../../src/runs/host-checks.ts';

const config = (compute: object, pretrain: object = {}): Parameters<typeof checkHost>[1] =>
  configSchema.parse({ version: 1, name: 'test', compute, pretrain });

const shards = (path: string): Parameters<typeof checkHost>[1] =>
  configSchema.parse({ version: 1, name: 'test', data: { kind: 'latentShards', path } });

const none = async (): Promise<readonly string[]> => [];
const two = async (): Promise<readonly string[]> => ['A', 'B'];

it('asks for as many GPUs as processes', async () => {
  const cuda = config({ device: 'cuda', gpusPerNode: 4 });
  await expect(checkHost('pretrain', cuda, process.env, none)).rejects.toMatchObject({ code: 'E_GPU' });
  await expect(checkHost('pretrain', cuda, process.env, two)).rejects.toMatchObject({
    message: 'compute.gpusPerNode is 4, but this machine has 2 GPUs.',
    hint: 'Use --gpus 2, or --set compute.device=cpu.',
  });
  await checkHost('pretrain', config({ device: 'cuda', gpusPerNode: 2 }), process.env, two);
  await checkHost('pretrain', config({ device: 'cpu', gpusPerNode: 4 }), process.env, none);
  await checkHost('pretrain', config({ device: 'auto', gpusPerNode: 4 }), process.env, none);
  await expect(
    checkHost('pretrain', config({ device: 'auto', gpusPerNode: 4 }), process.env, two),
  ).rejects.toMatchObject({ code: 'E_GPU' });
});

it('refuses more processes than this machine has memory for', async () => {
  for (const device of ['cpu', 'auto']) {
    await expect(
      checkHost('distill', config({ device, gpusPerNode: 1_000_000 }), process.env, none),
    ).rejects.toMatchObject({ code: 'E_CONFIG_VALUE', hint: expect.stringMatching(/at most --gpus \d+/) });
  }
});

it('looks at the GPUs of this machine, of a run on several, too', async () => {
  const nodes = config({ device: 'cuda', gpusPerNode: 2, nodes: 4 });
  await expect(checkHost('distill', nodes, process.env, two)).resolves.toBeUndefined();
});

it('refuses a pretraining batch that does not divide, in a pretraining only', async () => {
  const odd = config({ gpusPerNode: 3 }, { batchSize: 128 });
  await expect(checkHost('pretrain', odd, process.env, none)).rejects.toMatchObject({
    code: 'E_CONFIG_VALUE',
    message: expect.stringContaining('pretrain.batchSize is 128'),
    hint: expect.stringContaining('Use 126 or 129'),
  });
  await checkHost('distill', odd, process.env, none);
});

it('looks for shards, which a pretraining cannot use', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'rcm-shards-'));
  const missing = { code: 'E_DATA_NOT_FOUND', message: expect.stringContaining(folder) };
  await expect(checkHost('distill', shards(folder), process.env, none)).rejects.toMatchObject(missing);
  await expect(checkHost('distill', shards(join(folder, 'gone')), process.env, none)).rejects.toMatchObject(missing);
  writeFileSync(join(folder, 'shard_000000.tar'), '');
  await checkHost('distill', shards(folder), process.env, none);
  await expect(checkHost('pretrain', shards(folder), process.env, none)).rejects.toMatchObject({
    code: 'E_CONFIG_NOT_YET',
  });
});
