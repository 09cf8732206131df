import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Sidecar, type SidecarBlob, type SidecarOptions, startSidecar } from '../../src/bridge/index.ts';
import type { RequestBody, SidecarEvent } from '../../src/protocol/index.ts';
import { fixtures, testPython } from '../python.ts';

/** What the scripted job does; see test/fixtures/fake_sidecar.py. */
export interface Script {
  readonly steps?: number;
  readonly stepMs?: number;
  readonly metrics?: number;
  readonly grids?: number;
  readonly checkpointMs?: number;
  readonly at?: number;
  readonly fault?: string;
  readonly pidFile?: string;
  /** A log record each step. */
  readonly chatty?: boolean;
}

export const silentLogger = { debug: () => undefined, warn: () => undefined };

/** A fake sidecar with everything it has sent. */
export interface Fake {
  readonly sidecar: Sidecar;
  readonly events: SidecarEvent[];
  readonly blobs: SidecarBlob[];
  readonly folder: string;
  run(script: Script): Promise<void>;
  /** Resolves with the first event that fits, past or future. */
  event<T extends SidecarEvent['type']>(
    type: T,
    test?: (event: Extract<SidecarEvent, { type: T }>) => boolean,
  ): Promise<Extract<SidecarEvent, { type: T }>>;
  close(): Promise<void>;
}

export async function startFake(options: Partial<SidecarOptions> = {}): Promise<Fake> {
  const folder = mkdtempSync(join(tmpdir(), 'rcm-test-'));
  const events: SidecarEvent[] = [];
  const blobs: SidecarBlob[] = [];
  const waiting = new Set<() => void>();
  const sidecar = await startSidecar({
    python: testPython(),
    launchFile: join(fixtures, 'fake_sidecar.py'),
    cwd: folder,
    logger: silentLogger,
    ...options,
    onEvent: async event => {
      events.push(event);
      for (const look of waiting) look();
      await options.onEvent?.(event);
    },
    onBlob: async blob => {
      blobs.push(blob);
      await options.onBlob?.(blob);
    },
  });
  return {
    sidecar,
    events,
    blobs,
    folder,
    run: async script => {
      await sidecar.request('run.start', startBody(folder, script));
    },
    event: <T extends SidecarEvent['type']>(type: T, test = (_: Extract<SidecarEvent, { type: T }>) => true) =>
      new Promise<Extract<SidecarEvent, { type: T }>>(resolve => {
        const look = (): void => {
          const found = events.find(
            (event): event is Extract<SidecarEvent, { type: T }> =>
              event.type === type && test(event as Extract<SidecarEvent, { type: T }>),
          );
          if (!found) return;
          waiting.delete(look);
          resolve(found);
        };
        waiting.add(look);
        look();
      }),
    close: async () => {
      await sidecar.stop({ graceMs: 5_000 });
      await sidecar.exited;
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

export function startBody(folder: string, script: Script): RequestBody<'run.start'> {
  return {
    job: 'distill',
    config: { fake: script },
    runId: 'run-1',
    runDir: folder,
    attempt: 1,
    resumeFrom: null,
    allowDrift: false,
    cacheDir: folder,
    plan: {
      rows: [],
      samples: 0,
      seed: 0,
      network: 'ema',
      features: null,
      metrics: [],
      neighbours: 5,
      bootstrapResamples: 0,
      previewSteps: [],
    },
    smoke: false,
  };
}

/** True while the process exists and is no zombie (Linux). */
export function processLives(pid: number): boolean {
  const file = `/proc/${pid}/stat`;
  try {
    if (!existsSync(file)) return false;
    const text = readFileSync(file, 'utf8');
    return text.slice(text.lastIndexOf(')') + 2, text.lastIndexOf(')') + 3) !== 'Z';
  } catch {
    return false;
  }
}

/** Polls until it holds or the time is over. */
export async function holdsWithin(test: () => boolean, timeMs: number): Promise<boolean> {
  const end = performance.now() + timeMs;
  while (!test()) {
    if (performance.now() > end) return false;
    await new Promise(resolve => setTimeout(resolve, 5));
  }
  return true;
}

/** The 95th percentile, median and largest of some times. */
export function percentiles(times: readonly number[]): { p50: number; p95: number; max: number } {
  const sorted = [...times].sort((a, b) => a - b);
  const at = (share: number): number => Math.round(sorted[Math.ceil(share * sorted.length) - 1]! * 10) / 10;
  return { p50: at(0.5), p95: at(0.95), max: at(1) };
}
