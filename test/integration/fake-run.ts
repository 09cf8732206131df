import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startSidecar } from '../../src/bridge/index.ts';
import type { SidecarEvent } from '../../src/protocol/index.ts';
import { type Bridge, openBridge } from '../../src/runs/bridge.ts';
import type { Launcher } from '../../src/runs/launchers/launcher.ts';
import type { BridgeOptions } from '../../src/runs/options.ts';
import { fixtures, testPython } from '../python.ts';
import type { Script } from './fake-sidecar.ts';

/**
 * The scripted job of test/fixtures/fake_sidecar.py behind the real run service. The fake announces checkpoints without
 * writing them; here they are written, because runs are resumed from them.
 */
export function fakeLauncher(
  script: Script,
  onStart: (body: Record<string, unknown>) => void = () => undefined,
): Launcher {
  return async launch => {
    let runDir = '';
    const sidecar = await startSidecar({
      ...launch,
      launchFile: join(fixtures, 'fake_sidecar.py'),
      onEvent: async event => {
        if (event.type === 'checkpoint') writeCheckpoint(join(runDir, event.body.path), event.body.step);
        await launch.onEvent(event);
      },
    });
    return {
      ...sidecar,
      request: (type, body, options) => {
        if (type !== 'run.start') return sidecar.request(type, body, options);
        const start = body as unknown as { runDir: string; config: object };
        runDir = start.runDir;
        onStart(start as unknown as Record<string, unknown>);
        return sidecar.request(type, { ...start, config: { ...start.config, fake: script } } as never, options);
      },
    };
  };
}

export type ScriptedEvent = SidecarEvent extends infer Event
  ? Event extends SidecarEvent
    ? Pick<Event, 'type' | 'body'>
    : never
  : never;

/** A sidecar without a process: sends these events when it is started. */
export function scriptedLauncher(events: readonly ScriptedEvent[]): Launcher {
  return async launch => {
    let leave: (exit: { code: number; signal: null; stderrTail: string; lastSeq: number }) => void = () => undefined;
    const exited = new Promise<{ code: number; signal: null; stderrTail: string; lastSeq: number }>(resolve => {
      leave = resolve;
    });
    const exit = (): void => leave({ code: 0, signal: null, stderrTail: '', lastSeq: events.length });
    return {
      pid: 0,
      ready: { torch: 'none', cuda: null, cpuCapability: 'none', threads: 1, gpus: [], packages: {} },
      exited,
      kill: exit,
      stop: async () => exit(),
      request: async type => {
        if (type !== 'run.start') return {};
        const send = async (): Promise<void> => {
          for (const [seq, event] of events.entries()) {
            await launch.onEvent({ ...event, seq, time: Date.now() / 1000, run: undefined } as SidecarEvent);
          }
        };
        void send();
        return {};
      },
    };
  };
}

export function writeCheckpoint(path: string, step: number, torch = '2.11.0+cpu'): void {
  mkdirSync(path, { recursive: true });
  const content = Buffer.from(`weights of step ${step}`);
  writeFileSync(join(path, 'student.safetensors'), content);
  const sha256 = createHash('sha256').update(content).digest('hex');
  const files = { 'student.safetensors': { size: content.length, sha256 } };
  writeFileSync(join(path, 'manifest.json'), JSON.stringify({ schema: 1, step, files, torch, threads: 1 }));
}

export interface TestBridge {
  readonly folder: string;
  readonly runsDir: string;
  open(script: Script, options?: BridgeOptions, onStart?: (body: Record<string, unknown>) => void): Promise<Bridge>;
  openScripted(events: readonly ScriptedEvent[]): Promise<Bridge>;
  clean(): Promise<void>;
}

/** Bridges over one temporary runs folder. */
export function testBridges(): TestBridge {
  const folder = mkdtempSync(join(tmpdir(), 'rcm-runs-'));
  const runsDir = join(folder, 'runs');
  const bridges: Bridge[] = [];
  const open = async (launch: Launcher, options: BridgeOptions): Promise<Bridge> => {
    const bridge = await openBridge(
      { cwd: folder, runsDir, env: { RCM_BRIDGE_HOME: join(folder, 'home') }, ...options },
      {
        launch,
        findPython: async () => ({ executable: testPython(), version: '3.11', packages: { torch: '2.11.0+cpu' } }),
      },
    );
    bridges.push(bridge);
    return bridge;
  };
  return {
    folder,
    runsDir,
    open: (script, options = {}, onStart) => open(fakeLauncher(script, onStart), options),
    openScripted: events => open(scriptedLauncher(events), {}),
    clean: async () => {
      await Promise.all(bridges.map(bridge => bridge.close()));
      rmSync(folder, { recursive: true, force: true });
    },
  };
}
