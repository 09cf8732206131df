/** Progress for people: one line that renews itself on a terminal, else a line each ten seconds. */
import type { ProgressEvent, RunEvent } from '../runs/events.ts';
import { headlineLosses } from './metric-names.ts';

const lineIntervalMs = 10_000;
const redrawIntervalMs = 100;

export interface ProgressStream {
  write(text: string): unknown;
  readonly isTTY?: boolean;
  readonly columns?: number;
}

export interface ProgressOptions {
  readonly stream: ProgressStream;
  readonly enabled: boolean;
  /** Default: the variables CI and TERM=dumb turn the renewed line off. */
  readonly env?: NodeJS.ProcessEnv;
  /** Milliseconds; for tests. */
  readonly now?: () => number;
}

export interface Progress {
  show(event: RunEvent): void;
  end(): void;
}

export function createProgress(options: ProgressOptions): Progress {
  if (!options.enabled) return { show: () => undefined, end: () => undefined };
  const { stream, env = process.env, now = Date.now } = options;
  const renews = Boolean(stream.isTTY) && !env.CI && env.TERM !== 'dumb';
  return renews ? renewedLine(stream, now) : plainLines(stream, now);
}

function plainLines(stream: ProgressStream, now: () => number): Progress {
  let lastMs = Number.NEGATIVE_INFINITY;
  let lastActivity: string | undefined;
  return {
    show: event => {
      const note = describeNote(event);
      if (note) stream.write(`${note}\n`);
      if (event.type !== 'progress') return;
      const changed = event.activity !== lastActivity;
      if (!changed && now() - lastMs < lineIntervalMs) return;
      lastMs = now();
      lastActivity = event.activity;
      stream.write(`${describeProgress(event)}\n`);
    },
    end: () => undefined,
  };
}

function renewedLine(stream: ProgressStream, now: () => number): Progress {
  let lastMs = Number.NEGATIVE_INFINITY;
  let latest: ProgressEvent | undefined;
  let shown = false;
  const clear = (): void => {
    if (shown) stream.write('\r\u001b[2K');
    shown = false;
  };
  const draw = (): void => {
    if (!latest) return;
    stream.write(`\r\u001b[2K${describeProgress(latest).slice(0, (stream.columns ?? 80) - 1)}`);
    shown = true;
    lastMs = now();
  };
  return {
    show: event => {
      const note = describeNote(event);
      if (note) {
        clear();
        stream.write(`${note}\n`);
        draw();
      }
      if (event.type !== 'progress') return;
      const changed = event.activity !== latest?.activity;
      latest = event;
      if (changed || now() - lastMs >= redrawIntervalMs) draw();
    },
    end: () => {
      draw();
      if (shown) stream.write('\n');
      shown = false;
    },
  };
}

/** `training step 340/1050 (student)  scm/loss 93.2  dmd/loss 4.1  720 samples/s  2 min left` */
export function describeProgress(event: ProgressEvent): string {
  const phase = event.phase ? ` (${event.phase})` : '';
  const known = headlineLosses.filter(name => event.values[name] !== undefined);
  const losses = known.map(name => `${name} ${short(event.values[name] ?? Number.NaN)}`);
  const speed = event.samplesPerSecond === null ? [] : [`${short(event.samplesPerSecond)} samples/s`];
  const left = event.etaSeconds === null ? [] : [`${duration(event.etaSeconds)} left`];
  const isTraining = event.activity === 'training';
  const parts = isTraining ? [...losses, ...speed, ...left] : [];
  return [`${event.activity} step ${event.step}/${event.steps}${isTraining ? phase : ''}`, ...parts].join('  ');
}

/** What people want to read even when the progress line has moved on. */
function describeNote(event: RunEvent): string | undefined {
  switch (event.type) {
    case 'checkpoint':
      return `checkpoint of step ${event.step}: ${event.path}`;
    case 'alarm':
      return `alarm at step ${event.step}: ${event.message}`;
    case 'gap':
      return undefined;
    case 'log':
      return event.level === 'warn' || event.level === 'error' ? `${event.level}: ${event.message}` : undefined;
    default:
      return undefined;
  }
}

const short = (value: number): string =>
  Number.isFinite(value) ? String(Number(value.toPrecision(3))) : String(value);

/** Seconds for people: `45 s`, `2 min`, `3 h 20 min`, `2 d 4 h`. */
export function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return 'unknown time';
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const minutes = Math.round(whole / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}
