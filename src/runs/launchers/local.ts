import type { Launcher } from './launcher.ts';

/** Starts the sidecar as one process on this machine. `launchFile` replaces py/launch.py, for tests. */
export function localLauncher(launchFile?: string): Launcher {
  return async launch => {
    const { startSidecar } = await import('../../bridge/sidecar.ts');
    return startSidecar({ ...launch, ...(launchFile === undefined ? {} : { launchFile }) });
  };
}
