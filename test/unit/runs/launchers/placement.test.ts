import fc from 'fast-check';
import { expect, it } from 'vitest';
import { parseRendezvous, placementOf } from '../../../../src/runs/launchers/placement.ts';
import { firstHost } from '../../../../src/runs/launchers/slurm-variables.ts';

const inJob = { SLURM_JOB_ID: '123456', SLURM_NODEID: '1', SLURM_STEP_NODELIST: 'gpu[03-04]' };
const rendezvous = { host: 'gpu7', port: 29_400 };

it.each([
  ['one machine', { launcher: 'auto', nodes: 1 }, {}, {}, { launcher: 'local' }],
  ['one machine in a job', { launcher: 'auto', nodes: 1 }, {}, inJob, { launcher: 'local' }],
  [
    'several, as torchrun would be told',
    { launcher: 'torchrun', nodes: 2 },
    { rendezvous: 'gpu7:29400', nodeRank: 1 },
    {},
    { launcher: 'torchrun', rendezvous, node: 1 },
  ],
  [
    'several in a job: its first machine, a port from its number, the number of this task',
    { launcher: 'auto', nodes: 2 },
    {},
    inJob,
    { launcher: 'torchrun', rendezvous: { host: 'gpu03', port: 23_456 }, node: 1 },
  ],
  [
    'flags before variables',
    { launcher: 'auto', nodes: 2 },
    { rendezvous: 'gpu7:29400', nodeRank: 0 },
    inJob,
    { launcher: 'torchrun', rendezvous, node: 0 },
  ],
  ['a job to be submitted', { launcher: 'slurm', nodes: 4 }, {}, {}, { launcher: 'slurm' }],
  ['a job that runs already', { launcher: 'slurm', nodes: 1 }, {}, inJob, { launcher: 'local' }],
] as const)('%s', (_, compute, options, env, placement) => {
  expect(placementOf(compute, options, env)).toEqual(placement);
});

it.each(['auto', 'local', 'torchrun'] as const)('refuses options of sbatch with %s, not to lose them', launcher => {
  expect(() => placementOf({ launcher, nodes: 1 }, { slurm: ['time=1:00:00'] }, {})).toThrow(/--slurm is for jobs/);
});

it('takes options of sbatch with slurm, and an empty list with anything', () => {
  expect(placementOf({ launcher: 'slurm', nodes: 1 }, { slurm: ['exclusive'] }, {})).toEqual({ launcher: 'slurm' });
  expect(placementOf({ launcher: 'auto', nodes: 1 }, { slurm: [] }, {})).toEqual({ launcher: 'local' });
});

it('variables of Slurm count within a job only', () => {
  const { SLURM_JOB_ID: _, ...leftOver } = inJob;
  expect(() => placementOf({ launcher: 'auto', nodes: 2 }, {}, leftOver)).toThrow(/nothing says where/);
});

it.each([
  ['node1:29400', 'node1', 29_400],
  ['10.0.0.5:1', '10.0.0.5', 1],
  ['[fe80::1]:65535', 'fe80::1', 65_535],
])('reads %s', (given, host, port) => {
  expect(parseRendezvous(given)).toEqual({ host, port });
});

it.each(['', 'node1', ':29400', 'node1:', 'node1:0', 'node1:65536', 'fe80::1:29400', 'a b:1', 'tcp://node1:29400'])(
  'refuses %j as a rendezvous',
  given => {
    expect(() => parseRendezvous(given)).toThrow(/--rdzv takes HOST:PORT/);
  },
);

it.each([
  ['login1', 'login1'],
  ['a1,b[1-2]', 'a1'],
  ['gpu[003-004,7],login1', 'gpu003'],
  ['rack[1-2]n[07,09]', 'rack1n07'],
  ['gpu[5]-ib', 'gpu5-ib'],
])('the first host of %s is %s', (names, host) => {
  expect(firstHost(names)).toBe(host);
});

it('a name without brackets is its own first host', () => {
  fc.assert(fc.property(fc.stringMatching(/^[a-z0-9.-]{1,20}$/), name => firstHost(name) === name));
});
