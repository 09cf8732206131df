import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PNG } from 'pngjs';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { chartsOf } from '../../../src/report/charts.ts';
import { renderReport, writeReport } from '../../../src/report/html.ts';
import { html } from '../../../src/report/markup.ts';
import { profilesOf } from '../../../src/report/profile.ts';
import { seriesOf } from '../../../src/report/run-data.ts';
import { writeJsonAtomic } from '../../../src/runs/files.ts';
import { openJournal, readMetrics } from '../../../src/runs/journal.ts';
import { thisOwner } from '../../../src/runs/owner.ts';
import { writeRecord } from '../../../src/runs/record.ts';
import { encodeGrid, sampleFolder, writeSampleGrid } from '../../../src/runs/sample-files.ts';

let runDir: string;
beforeEach(() => {
  runDir = mkdtempSync(join(tmpdir(), 'rcm-report-'));
  writeRecord(runDir, {
    id: '20261122-183701-<digits>-aaaa',
    job: 'distill',
    state: 'succeeded',
    attempt: 2,
    owner: thisOwner(),
    heartbeat: '2026-11-22T18:37:01.000Z',
    times: {
      created: '2026-11-22T18:37:01.000Z',
      started: '2026-11-22T18:37:01.000Z',
      ended: '2026-11-22T18:41:01.000Z',
    },
    progress: { step: 1050, steps: 1050, studentUpdates: 450, criticUpdates: 600 },
    exitCode: 6,
    error: null,
    smoke: false,
  });
});
afterEach(() => rmSync(runDir, { recursive: true, force: true }));

const log = (attempt: number, step: number, values: Record<string, number>): void => {
  const journal = openJournal(runDir, attempt);
  journal.metric({ type: 'metric', attempt, step, phase: 'student', time: step, values });
  journal.close();
};

async function fillRun(): Promise<void> {
  const gates = [{ metric: 'recall', steps: 1, atLeast: 0.75 }];
  writeJsonAtomic(join(runDir, 'config.json'), {
    config: { method: 'rcm', note: '</script><b>', evaluation: { gates } },
  });
  writeJsonAtomic(join(runDir, 'environment.json'), { torch: '2.11.0+cpu' });
  const names = [
    'scm/loss',
    'scm/g_norm',
    'scm/jvp_norm',
    'scm/teacher_gap_bucket_0',
    'critic/loss',
    'grad_norm/scm',
    'grad_norm/dmd',
  ];
  for (const step of [10, 20]) log(1, step, Object.fromEntries(names.map(name => [name, step])));
  mkdirSync(join(runDir, 'evaluation'));
  const metric = (value: number | null, reason?: string) => ({ value, low: 7.2, high: 9.3, reason });
  const common = { calls: 1, n: 1797, seed: 1000, seconds: 0.001, guidance: null };
  writeJsonAtomic(join(runDir, 'evaluation', 'step-00001050-ema.json'), {
    step: 1050,
    network: 'ema',
    features: 'builtin:digits-classifier',
    featureDimension: 32,
    floors: { realReal: 5.0, teacherTeacher: 1.25 },
    seconds: 3,
    rows: [
      { ...common, sampler: 'student', steps: 1, metrics: { fdTeacher: metric(8.1), recall: metric(0.5) } },
      { ...common, sampler: 'teacher', steps: 1, metrics: { fdTeacher: metric(null, 'n') } },
    ],
  });
  const pixels = { shape: [2, 3, 8, 8, 1], data: new Uint8Array(2 * 3 * 64) };
  for (const [step, kind] of [
    [350, 'preview'],
    [1050, 'evaluation'],
  ] as const) {
    const grid = { step, kind, title: `Grid ${step}`, rows: ['teacher', 'student 1 step'], columns: ['0', '1', '2'] };
    await writeSampleGrid(join(runDir, sampleFolder(step)), grid, pixels);
  }
}

describe('the report', () => {
  test('holds curves, grids, table with n, floors and intervals, gates, config and versions', async () => {
    await fillRun();
    const page = readFileSync(await writeReport([runDir]), 'utf8');
    for (const title of ['g norm', 'JVP norm', 'Teacher gap by time', 'Critic loss', 'Gradient norms of both terms']) {
      expect(page).toContain(`<h3>${title}</h3>`);
    }
    expect(page.match(/<img src="data:image\/png;base64,/g)).toHaveLength(2);
    expect(page).toContain('8.1 [7.2, 9.3]<small>n 1797, floor 1.25</small>');
    expect(page).toContain('refused: n too small');
    expect(page).toContain('recall at 1 step at least 0.75: 0.5, bound 0.75');
    expect(page).toContain('not met');
    expect(page).toContain('2.11.0+cpu');
    expect(page).toContain('450 student updates');
  });

  test('forbids requests, and its policy allows exactly its own scripts', async () => {
    await fillRun();
    const page = await renderReport([runDir]);
    const policy =
      /http-equiv="Content-Security-Policy" content="([^"]+)"/.exec(page)?.[1]?.replaceAll('&#39;', "'") ?? '';
    expect(policy).toContain("default-src 'none'");
    expect(policy).not.toMatch(/https?:|\*|connect-src|script-src[^;]*unsafe/);
    const scripts = [...page.matchAll(/<script>([\s\S]*?)<\/script>/g)].map(([, text = '']) => text);
    expect(scripts).toHaveLength(2);
    for (const script of scripts) {
      expect(policy).toContain(`'sha256-${createHash('sha256').update(script).digest('base64')}'`);
      expect(() => new Function(script)).not.toThrow();
    }
    expect(page).not.toMatch(/(src|href)="(?!data:)/);
    expect(page).not.toMatch(/@import|url\(/);
  });

  test('shows what users wrote as text', async () => {
    await fillRun();
    const page = await renderReport([runDir]);
    expect(page).not.toContain('</script><b>');
    expect(page).not.toContain('-<digits>-');
    expect(html`<p title="${'"<'}">${"a & 'b'"}</p>`.text).toBe('<p title="&quot;&lt;">a &amp; &#39;b&#39;</p>');
  });

  test('of a run that has only begun, and of several runs, is whole too', async () => {
    const page = await renderReport([runDir, runDir]);
    expect(page.match(/<h1>/g)).toHaveLength(2);
    await expect(renderReport([join(runDir, 'nowhere')])).rejects.toMatchObject({ code: 'E_RUN_NOT_FOUND' });
  });
});

describe('curves', () => {
  test('take the highest attempt where steps repeat', () => {
    log(1, 10, { 'scm/loss': 1 });
    log(1, 20, { 'scm/loss': 2 });
    log(2, 20, { 'scm/loss': 3 });
    log(2, 30, { 'scm/loss': 4 });
    expect(seriesOf(readMetrics(runDir))).toEqual([
      {
        name: 'scm/loss',
        points: [
          [10, 1],
          [20, 3],
          [30, 4],
        ],
      },
    ]);
  });

  test('leave holes where there is no number to draw', () => {
    const series = [
      {
        name: 'scm/g_norm',
        points: [
          [1, 2],
          [2, Number.NaN],
          [3, 0],
        ] as const,
      },
      { name: 'unknown', points: [[1, 1]] as const },
    ];
    expect(chartsOf(series)).toMatchObject([
      {
        title: 'g norm',
        data: [
          [1, 2, 3],
          [2, null, null],
        ],
      },
    ]);
  });
});

describe('the time of a step', () => {
  const profile = (steps: number, teacher: number, checkpoint: number) => ({
    'profile/steps': steps,
    'profile/step_ms': teacher + checkpoint,
    'profile/teacher_ms': teacher,
    'profile/checkpoint_ms': checkpoint,
    'profile/outside_networks': checkpoint / (teacher + checkpoint),
  });

  test('is the mean over all steps, with the highest attempt where steps repeat', () => {
    log(1, 1, { 'scm/loss': 1 });
    log(1, 10, profile(9, 30, 0));
    log(1, 20, profile(10, 1000, 1000));
    log(2, 20, profile(1, 70, 100));
    expect(profilesOf(readMetrics(runDir))).toEqual([
      {
        phase: 'student',
        steps: 10,
        stepMs: 44,
        outsideNetworks: expect.closeTo(10 / 44),
        parts: [
          { name: 'teacher', ms: 34, share: expect.closeTo(34 / 44) },
          { name: 'checkpoint', ms: 10, share: expect.closeTo(10 / 44) },
        ],
      },
    ]);
  });

  test('stands in the report of a run that has a profile, and of no other', async () => {
    expect(await renderReport([runDir])).not.toContain('Time of a step');
    log(1, 10, profile(9, 300, 100));
    const page = await renderReport([runDir]);
    expect(page).toContain('<h2>Time of a step</h2>');
    expect(page).toContain('<th>student<small>9 steps, 400 ms each</small></th>');
    expect(page).toContain('<td>300 ms<small>75.0 %</small>');
    expect(page).toContain('<td>outside calls of networks</td><td>100 ms<small>25.0 %</small>');
  });
});

describe('sample grids', () => {
  test('are whole pixels, in rows and columns, grey or coloured', async () => {
    const grey = { shape: [1, 2, 1, 2, 1], data: Uint8Array.from([10, 20, 30, 40]) };
    const { png, tile } = await encodeGrid(grey);
    const image = PNG.sync.read(png);
    const at = (x: number, y: number) => [
      ...image.data.subarray((y * image.width + x) * 4, (y * image.width + x) * 4 + 4),
    ];
    expect(tile).toEqual({ width: 32, height: 16, gap: 2 });
    expect([image.width, image.height]).toEqual([2 * 34 + 2, 20]);
    expect([at(2, 2), at(33, 17), at(36, 2), at(67, 17), at(0, 0)]).toEqual([
      [10, 10, 10, 255],
      [20, 20, 20, 255],
      [30, 30, 30, 255],
      [40, 40, 40, 255],
      [128, 128, 128, 255],
    ]);
    const colour = await encodeGrid({ shape: [1, 1, 1, 1, 3], data: Uint8Array.from([1, 2, 3]) });
    expect([...PNG.sync.read(colour.png).data.subarray((2 * 36 + 2) * 4, (2 * 36 + 2) * 4 + 3)]).toEqual([1, 2, 3]);
  });

  test('of another shape than their bytes are refused', async () => {
    const wrong = { shape: [1, 1, 2, 2, 1], data: new Uint8Array(3) };
    await expect(encodeGrid(wrong)).rejects.toMatchObject({ code: 'E_PROTOCOL' });
    await expect(encodeGrid({ ...wrong, shape: [2, 2] })).rejects.toMatchObject({ code: 'E_PROTOCOL' });
  });

  test('are named after what they show', async () => {
    const grid = { step: 7, kind: 'request', title: '../Digits & more', rows: ['a'], columns: ['b'] } as const;
    expect(await writeSampleGrid(runDir, grid, { shape: [1, 1, 1, 1, 1], data: new Uint8Array(1) })).toBe(
      'request-digits-more.png',
    );
    const document = JSON.parse(readFileSync(join(runDir, 'request-digits-more.json'), 'utf8'));
    expect(document).toMatchObject({ schema: 1, step: 7, rows: ['a'], image: 'request-digits-more.png' });
  });
});
