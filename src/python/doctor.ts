import {
  type FindPythonOptions,
  missingMedia,
  type PythonEnvironment,
  type PythonSource,
  searchPython,
} from './find.ts';
import { managedHome } from './home.ts';
import { listManaged, type ManagedEnvironment } from './managed.ts';
import { mediaNames } from './requirements.ts';

/** What `rcm-bridge doctor` prints about Python. */
export interface PythonDescription {
  /** The interpreter that would be used. */
  readonly selected?: PythonEnvironment;
  /** The packages for fetching, encoders and datasets: where they are, or how to get them. */
  readonly media: {
    readonly names: readonly string[];
    readonly found?: PythonEnvironment;
    readonly hint?: string | undefined;
  };
  /** Every place that was looked at, in the order of use. */
  readonly candidates: readonly {
    readonly source: PythonSource;
    readonly executable: string;
    readonly version: string | null;
    readonly usable: boolean;
    /** Why it is not usable. */
    readonly problem: string | null;
    readonly hint: string | null;
  }[];
  readonly home: string;
  readonly managed: readonly ManagedEnvironment[];
}

/** Looks at every interpreter there is, without importing torch and without installing anything. */
export async function describePython(options: FindPythonOptions): Promise<PythonDescription> {
  const home = options.home ?? managedHome(options.env);
  const { found, candidates } = await searchPython({ ...options, home, all: true });
  const withMedia = await searchPython({ ...options, home, needs: mediaNames });
  return {
    ...(found ? { selected: found } : {}),
    media: {
      names: mediaNames,
      ...(withMedia.found
        ? { found: withMedia.found }
        : { hint: missingMedia(mediaNames, found, withMedia.candidates).hint }),
    },
    candidates: candidates.map(({ source, executable, result }) => ({
      source,
      executable,
      version: result.facts?.version ?? null,
      usable: result.usable,
      problem: result.usable ? null : result.reason,
      hint: result.usable ? null : result.hint,
    })),
    home,
    managed: listManaged(home),
  };
}
