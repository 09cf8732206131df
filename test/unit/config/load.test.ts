import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { listPresets, loadConfig, type RcmConfigInput } from '../../../src/config/load.ts';
import { isRcmBridgeError } from '../../../src/errors/index.ts';

let cwd = '';
beforeEach(() => {
  cwd = mkdtempSync(join(tmpdir(), 'rcm-config-test-'));
});
afterEach(() => rmSync(cwd, { recursive: true, force: true }));

const write = (name: string, text: string): string => {
  mkdirSync(dirname(join(cwd, name)), { recursive: true });
  writeFileSync(join(cwd, name), text);
  return `./${name}`;
};
const load = (
  source: string | RcmConfigInput,
  set: readonly string[] | Record<string, unknown> = [],
  env: Record<string, string> = {},
) => loadConfig(source, { cwd, set, env });

async function refusal(promise: Promise<unknown>): Promise<{ code: string; message: string; hint: string }> {
  const error = await promise.then(
    () => new Error('it was accepted'),
    (reason: unknown) => reason,
  );
  if (!isRcmBridgeError(error)) throw error;
  return { code: error.code, message: error.message, hint: error.hint ?? '' };
}

describe('presets', () => {
  it('are listed and all valid', async () => {
    expect(listPresets()).toContain('digits-rcm');
    for (const preset of listPresets()) expect((await load(preset)).config.name).toBe(preset);
  });

  it('give the defaults: an empty config is digits-rcm', async () => {
    const { config } = await load({});
    expect({ ...config, name: 'digits-rcm' }).toEqual((await load('digits-rcm')).config);
  });

  it('are never the default sizes of another network', async () => {
    const latents = { name: 'wan2.1-tiny', height: 16, width: 16, vae: 'auto' } as const;
    const shards = {
      data: { kind: 'latentShards', path: 'shards' },
      teacher: { negative: 'default' },
      evaluation: { features: null, metrics: [], gates: [] },
    } as const;
    expect((await load({ model: latents, ...shards })).config.model.overrides).toEqual({});
    const overrides = { dim: 32, inDim: 1, outDim: 1 };
    expect((await load({ model: { overrides } })).config.model.overrides).toEqual(overrides);
  });

  it('suggest the nearest name', async () => {
    expect(await refusal(load('digits-rmc'))).toMatchObject({
      code: 'E_CONFIG_NOT_FOUND',
      hint: 'Did you mean digits-rcm?',
    });
  });
});

describe('files', () => {
  it('are read as YAML and JSON alike', async () => {
    const yaml = await load(write('a.yaml', 'version: 1\nextends: digits-rcm\nschedule: { steps: 20 }\n'));
    const json = await load(write('a.json', '{"version": 1, "extends": "digits-rcm", "schedule": {"steps": 20}}'));
    expect(json.config).toEqual(yaml.config);
    expect(yaml.config.schedule.steps).toBe(20);
    expect(yaml.source).toBe(join(cwd, 'a.yaml'));
  });

  it('take their name from the file where none is given', async () => {
    expect((await load(write('my run!.yaml', 'seed: 1'))).config.name).toBe('my-run-');
  });

  it('parse the documented config that extends a preset', async () => {
    const text = [
      'version: 1',
      'extends: wan2.1-t2v-1.3b-480p-rcm',
      'name: my-wan',
      'model: { path: /models/Wan2.1-T2V-1.3B }',
      'data: { path: /data/my-shards }',
      'student: { lora: { rank: 64, alpha: 64, targets: [attention, ffn] } }',
      'compute: { gpusPerNode: 2, parallel: { shard: 2 } }',
      'schedule: { steps: 20000, batchSize: 2 }',
      'logging: { sinks: [tensorboard, wandb] }',
    ].join('\n');
    const { config, origins } = await load(write('my-wan.yaml', text));
    expect(config).toMatchObject({
      name: 'my-wan',
      teacher: { guidance: 5 },
      compute: { parallel: { shard: 2, context: 1 } },
    });
    expect(config.logging.sinks).toEqual(['tensorboard', 'wandb']);
    expect(origins['schedule.steps']).toMatchObject({ kind: 'file', where: 'my-wan.yaml', line: 8, column: 20 });
    expect(origins['teacher.guidance']).toMatchObject({ kind: 'extends' });
    expect(origins['pretrain.steps']).toEqual({ kind: 'default' });
  });

  it('may ask for adapters of any rank, started from those of an earlier run', async () => {
    const lora = '{ rank: 16, alpha: 8, targets: [ffn] }';
    const text = `student: { init: runs/a/export/lora/official.safetensors, lora: ${lora} }`;
    const { config } = await load(write('lora.yaml', text));
    expect(config.student).toMatchObject({ lora: { rank: 16, alpha: 8, targets: ['ffn'] } });
    expect(config.student.init).toBe(join(cwd, 'runs/a/export/lora/official.safetensors'));
    expect(config.critic.init).toBe('teacher');
  });

  it('extend files relative to themselves, presets by name, in a chain', async () => {
    write('base/grand.yaml', 'extends: digits-rcm\nseed: 1\nschedule: { steps: 5 }');
    write('base/parent.yaml', 'extends: ./grand.yaml\nseed: 2');
    const { config, origins } = await load(write('child.yaml', 'extends: base/parent.yaml\nname: child'));
    expect(config).toMatchObject({ name: 'child', seed: 2, schedule: { steps: 5, studentEvery: 3 } });
    expect(origins.seed).toMatchObject({ kind: 'extends', where: 'base/parent.yaml', line: 2, column: 7 });
  });

  it('refuse loops', async () => {
    write('b.yaml', 'extends: ./a.yaml');
    const error = await refusal(load(write('a.yaml', 'version: 1\nextends: ./b.yaml')));
    expect(error).toMatchObject({
      code: 'E_CONFIG_EXTENDS_LOOP',
      message: 'b.yaml:1:10: a.yaml extends b.yaml extends a.yaml.',
    });
  });

  it('replace lists, and blocks that get another kind', async () => {
    const { config } = await load({
      extends: 'digits-rcm',
      evaluation: { steps: [1], gates: [] },
      losses: { scm: { timeDistribution: { kind: 'uniformShifted', shift: 5 } } },
    });
    expect(config.evaluation.steps).toEqual([1]);
    expect(config.losses.scm.timeDistribution).toEqual({ kind: 'uniformShifted', shift: 5 });
    expect(
      (await load('digits-rcm', ['losses.scm.timeDistribution.std=2'])).config.losses.scm.timeDistribution,
    ).toEqual({
      kind: 'logNormalSigma',
      mean: -0.4,
      std: 2,
    });
  });

  it('remove inherited overrides by null', async () => {
    const { config } = await load({ extends: 'digits-rcm', model: { overrides: { dim: 32, ffnDim: null } } });
    expect(config.model.overrides).toMatchObject({ dim: 32, numHeads: 2 });
    expect(config.model.overrides).not.toHaveProperty('ffnDim');
  });

  it('make relative paths absolute, words and locators stay', async () => {
    const { config } = await load({ teacher: { weights: 'teachers/mine' }, critic: { init: './critic' } });
    expect(config.teacher.weights).toBe(join(cwd, 'teachers/mine'));
    expect(config.critic.init).toBe(join(cwd, 'critic'));
    expect(config.student.init).toBe('teacher');
    expect(config.evaluation.features).toBe('builtin:digits-classifier');
  });

  it('come back frozen', async () => {
    const { config } = await load('digits-rcm');
    expect(() => Object.assign(config.schedule, { steps: 1 })).toThrow(TypeError);
  });
});

describe('set values', () => {
  it('are read as YAML and win over variables, which win over files', async () => {
    const file = write('a.yaml', 'schedule: { steps: 10, studentEvery: 2 }\nseed: 3');
    const { config, origins } = await load(
      file,
      ['schedule.steps=30', 'evaluation.gates=[]', 'checkpoints.everySteps=null'],
      {
        RCM_SET_2: 'schedule.steps=20',
        RCM_SET_10: 'schedule.studentEvery=7',
        RCM_SET_9: 'schedule.studentEvery=6',
        RCM_SETTING: 'no pair',
      },
    );
    expect(config).toMatchObject({
      seed: 3,
      schedule: { steps: 30, studentEvery: 7 },
      evaluation: { gates: [] },
      checkpoints: { everySteps: null },
    });
    expect(origins['schedule.steps']).toEqual({ kind: 'flag', where: '--set schedule.steps=30' });
    expect(origins['schedule.studentEvery']).toEqual({ kind: 'env', where: 'RCM_SET_10' });
  });

  it('may be an object of key paths', async () => {
    expect((await load('digits-rcm', { 'schedule.steps': 500 })).config.schedule.steps).toBe(500);
  });
});

const wrong: readonly [name: string, text: string, code: string, message: RegExp, hint: RegExp][] = [
  [
    'unknown key',
    'version: 1\nschedule:\n  stepz: 3',
    'E_CONFIG_UNKNOWN_KEY',
    /^bad\.yaml:3:3: unknown key schedule\.stepz\.$/,
    /^Did you mean schedule\.steps\?$/,
  ],
  [
    'key of another block',
    'batchSize: 3',
    'E_CONFIG_UNKNOWN_KEY',
    /^bad\.yaml:1:1: /,
    /pretrain\.batchSize or schedule\.batchSize\?/,
  ],
  [
    'nothing near',
    'zzzzzzzz: 3',
    'E_CONFIG_UNKNOWN_KEY',
    /unknown key zzzzzzzz/,
    /^Keys of a config: version, extends, name/,
  ],
  [
    'key of another kind',
    'losses: { scm: { timeDistribution: { kind: uniformShifted, shift: 1, std: 2 } } }',
    'E_CONFIG_UNKNOWN_KEY',
    /timeDistribution\.std/,
    /kind, shift/,
  ],
  [
    'key inside a list',
    'evaluation:\n  gates:\n    - { metric: recall, step: 1, atLeast: 0.5 }',
    'E_CONFIG_UNKNOWN_KEY',
    /^bad\.yaml:2:3: unknown key evaluation\.gates\.0\.step/,
    /gates\.0\.steps\?/,
  ],
  ['prototype', '__proto__: { seed: 1 }', 'E_CONFIG_UNKNOWN_KEY', /__proto__/, /Remove/],
  [
    'wrong type',
    'version: 1\nschedule: { steps: many }',
    'E_CONFIG_VALUE',
    /^bad\.yaml:2:20: schedule\.steps takes a whole number of at least 1, not "many"\.$/,
    /Trainer iterations/,
  ],
  ['out of range', 'schedule: { steps: 0 }', 'E_CONFIG_VALUE', /of at least 1, not 0/, /./],
  [
    'not finite',
    'student: { optimizer: { learningRate: .inf } }',
    'E_CONFIG_VALUE',
    /a number above 0, not Infinity/,
    /./,
  ],
  ['wrong word', 'method: rmc', 'E_CONFIG_VALUE', /one of rcm, scm, dmd, dcm, not "rmc"/, /Did you mean rcm\?/],
  ['wrong kind', 'pretrain: { ema: { kind: powr, decay: 0.9 } }', 'E_CONFIG_VALUE', /pretrain\.ema\.kind/, /./],
  [
    'missing part of a kind',
    'pretrain: { ema: { kind: power, decay: 0.9 } }',
    'E_CONFIG_UNKNOWN_KEY',
    /pretrain\.ema\.decay/,
    /./,
  ],
  [
    'missing value',
    'losses: { scm: { timeDistribution: { kind: uniformShifted } } }',
    'E_CONFIG_VALUE',
    /shift is missing; it takes a number above 0/,
    /./,
  ],
  [
    'one of two',
    'schedule: { microBatchSize: half }',
    'E_CONFIG_VALUE',
    /auto or a whole number of at least 1, not "half"/,
    /./,
  ],
  [
    'list item',
    'evaluation: { metrics: [recall, fdTeachr] }',
    'E_CONFIG_VALUE',
    /evaluation\.metrics\.1/,
    /Did you mean fdTeacher\?/,
  ],
  [
    'number or null',
    'evaluation: { gates: [{ metric: recall, steps: 1, atLeast: high }] }',
    'E_CONFIG_VALUE',
    /a number or null, not "high"/,
    /./,
  ],
  ['block as text', 'schedule: fast', 'E_CONFIG_VALUE', /schedule takes a block of keys, not "fast"/, /./],
  ['another version', 'version: 2', 'E_CONFIG_VALUE', /version takes 1, not 2/, /./],
  [
    'batch that does not divide',
    'schedule: { batchSize: 100, microBatchSize: 3 }',
    'E_CONFIG_VALUE',
    /does not divide/,
    /divisor/,
  ],
  [
    'times that rise',
    'student: { sampler: { times: [1.0, 1.4] } }',
    'E_CONFIG_VALUE',
    /student\.sampler\.times must fall/,
    /1\.5/,
  ],
  ['more steps than times', 'evaluation: { steps: [8] }', 'E_CONFIG_VALUE', /evaluation\.steps asks for more/, /./],
  [
    'gate without a bound',
    'evaluation: { gates: [{ metric: recall, steps: 1 }] }',
    'E_CONFIG_VALUE',
    /gates\.0 needs either/,
    /./,
  ],
  [
    'gate on what is not measured',
    'evaluation: { metrics: [fdReal], gates: [{ metric: recall, steps: 1, atLeast: 1 }] }',
    'E_CONFIG_VALUE',
    /does not list/,
    /./,
  ],
  [
    'final share without cosine',
    'critic: { optimizer: { finalShare: 0.1 } }',
    'E_CONFIG_VALUE',
    /belongs to the cosine schedule/,
    /null/,
  ],
  ['attention kernel without a GPU', 'compute: { attention: hopper }', 'E_CONFIG_VALUE', /kernel for GPUs/, /auto/],
  [
    'LoRA on weights of its own',
    'student: { init: builtin:digits-teacher, lora: { rank: 4, alpha: 4, targets: [ffn] } }',
    'E_CONFIG_VALUE',
    /^bad\.yaml:1:18: student\.init is builtin:digits-teacher, but with student\.lora all roles share/,
    /adapter file/,
  ],
  [
    'LoRA target named twice',
    'student: { lora: { rank: 4, alpha: 4, targets: [ffn, ffn] } }',
    'E_CONFIG_VALUE',
    /student\.lora\.targets names ffn twice/,
    /Use \[ffn\]/,
  ],
  [
    'LoRA without a scale',
    'student: { lora: { rank: 4, targets: [ffn] } }',
    'E_CONFIG_VALUE',
    /student\.lora\.alpha is missing/,
    /alpha \/ rank/,
  ],
  [
    'shards without a folder',
    'data: { kind: latentShards }',
    'E_CONFIG_VALUE',
    /^bad\.yaml:1:.*data\.path is null/,
    /tar/,
  ],
  [
    'labels with the negative of a text encoder',
    'teacher: { negative: default }',
    'E_CONFIG_VALUE',
    /^bad\.yaml:1:22: teacher\.negative is default, but digits have labels/,
    /empty or zeros/,
  ],
  [
    'texts with the empty condition of labels',
    'data: { kind: latentShards, path: shards }\nevaluation: { features: null, metrics: [], gates: [] }',
    'E_CONFIG_VALUE',
    /teacher\.negative is empty/,
    /default, zeros/,
  ],
  [
    'features of latents',
    'data: { kind: latentShards, path: shards }\nteacher: { negative: zeros }',
    'E_CONFIG_VALUE',
    /evaluation\.features is builtin:digits-classifier/,
    /null/,
  ],
  ['name that is a path', 'name: ../up', 'E_CONFIG_VALUE', /name takes text of the form/, /./],
  [
    'not yet',
    'version: 1\ncompute: { compile: true }',
    'E_CONFIG_NOT_YET',
    /^bad\.yaml:2:21: compute\.compile takes only false so far, not true\.$/,
    /./,
  ],
  ['not yet, alarms', 'health: { onAlarm: pause }', 'E_CONFIG_NOT_YET', /health\.onAlarm/, /./],
  ['no YAML', 'a: [1, 2', 'E_CONFIG_SYNTAX', /^bad\.yaml:1:\d+: /, /./],
  ['same key twice', 'seed: 1\nseed: 2', 'E_CONFIG_SYNTAX', /^bad\.yaml:2:1: .*unique/, /./],
  ['empty', '', 'E_CONFIG_SYNTAX', /block of keys/, /extends/],
  ['list', '- 1', 'E_CONFIG_SYNTAX', /block of keys/, /extends/],
  [
    'extends of the wrong type',
    'extends: [a, b]',
    'E_CONFIG_VALUE',
    /^bad\.yaml:1:10: extends takes a preset or a file/,
    /./,
  ],
  [
    'extends a missing preset',
    'extends: digits',
    'E_CONFIG_NOT_FOUND',
    /^bad\.yaml:1:10: there is no preset "digits"/,
    /Presets: .*digits-rcm/,
  ],
  ['extends a missing file', 'extends: ./none.yaml', 'E_CONFIG_NOT_FOUND', /none\.yaml: there is no such file/, /./],
];

describe('bad configs', () => {
  it.each(wrong)('%s', async (_name, text, code, message, hint) => {
    const error = await refusal(load(write('bad.yaml', text)));
    expect(error.code).toBe(code);
    expect(error.message).toMatch(message);
    expect(error.message).not.toContain('\n');
    expect(error.hint).toMatch(hint);
  });

  it('name the flag, the variable or the object', async () => {
    expect(await refusal(load('digits-rcm', ['schedule.stepz=3']))).toMatchObject({
      code: 'E_CONFIG_UNKNOWN_KEY',
      message: '--set schedule.stepz=3: unknown key schedule.stepz.',
      hint: 'Did you mean schedule.steps?',
    });
    expect((await refusal(load('digits-rcm', [], { RCM_SET_1: 'seed=x' }))).message).toMatch(/^RCM_SET_1: seed takes/);
    expect((await refusal(load({ schedule: { steps: -1 } }))).message).toMatch(/^config object: schedule\.steps/);
    expect((await refusal(load('digits-rcm', { 'schedule.steps': '5' }))).message).toMatch(
      /^set\['schedule\.steps'\]: /,
    );
    expect((await refusal(load('digits-rcm', ['steps']))).code).toBe('E_USAGE');
    expect((await refusal(load('digits-rcm', ['a..b=1']))).code).toBe('E_USAGE');
    expect((await refusal(load('digits-rcm', ['seed=[1']))).code).toBe('E_CONFIG_SYNTAX');
  });

  it('say that a path is missing, or a folder', async () => {
    expect((await refusal(load('./none.yaml'))).message).toMatch(/none\.yaml: there is no such file/);
    mkdirSync(join(cwd, 'folder.yaml'));
    expect((await refusal(load('./folder.yaml'))).message).toMatch(/it is a folder/);
  });

  it('name the line of a JSON error', async () => {
    expect(await refusal(load(write('bad.json', '{\n  "seed": 1,\n}')))).toMatchObject({
      code: 'E_CONFIG_SYNTAX',
      message: expect.stringMatching(/^bad\.json:\d+:\d+: no valid JSON/),
    });
  });

  it('never end in another kind of error', async () => {
    const keys = fc.constantFrom(
      'seed',
      'model',
      'steps',
      'schedule',
      'kind',
      'losses',
      'gates',
      'evaluation',
      'overrides',
      '__proto__',
      'x',
    );
    const { tree } = fc.letrec(tie => ({
      leaf: fc.oneof(fc.integer(), fc.double(), fc.string(), fc.boolean(), fc.constant(null)),
      tree: fc.oneof(
        { depthSize: 'small' },
        tie('leaf'),
        fc.array(tie('tree'), { maxLength: 3 }),
        fc.dictionary(keys, tie('tree'), { maxKeys: 4 }),
      ),
    }));
    await fc.assert(
      fc.asyncProperty(fc.dictionary(keys, tree, { maxKeys: 4 }), async document => {
        const outcome = await load(document as RcmConfigInput).catch((error: unknown) => error);
        expect(isRcmBridgeError(outcome) || outcome !== undefined).toBe(true);
        if (outcome instanceof Error && !isRcmBridgeError(outcome)) throw outcome;
      }),
      { numRuns: 150 },
    );
  });
});
