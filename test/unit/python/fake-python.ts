import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

export const allPackages = {
  torch: '2.11.0',
  numpy: '2.3.5',
  pyzmq: '27.3.0',
  msgspec: '0.22.0',
  safetensors: '0.8.0',
} as const;

export const mediaPackages = {
  huggingface_hub: '2.4.0',
  diffusers: '0.42.1',
  transformers: '5.24.0',
  webdataset: '1.0.2',
  av: '18.1.0',
  ftfy: '6.3.1',
} as const;

export interface FakePython {
  readonly version?: string;
  readonly implementation?: string;
  readonly packages?: Readonly<Record<string, string>>;
  readonly hasVenv?: boolean;
  readonly hasEnsurePip?: boolean;
  readonly hasPip?: boolean;
  /** Version of its pip, for `pip --version`. */
  readonly pip?: string;
}

/**
 * A shell script that answers like an interpreter: the probe, `-m venv`, and a pip that only notes what it was asked
 * to install (in the file named by FAKE_LOG). It fails while the file named by FAKE_FAIL exists, with FAKE_FAIL_ON only
 * for words that hold that text; with FAKE_SLEEP it takes so many seconds.
 */
export function writeFakePython(path: string, fake: FakePython = {}): string {
  mkdirSync(dirname(path), { recursive: true });
  const facts = {
    implementation: fake.implementation ?? 'CPython',
    version: fake.version ?? '3.11.7',
    platform: 'linux',
    hasVenv: fake.hasVenv ?? true,
    hasEnsurePip: fake.hasEnsurePip ?? true,
    hasPip: fake.hasPip ?? true,
  };
  const text = `#!/bin/sh
here=$(dirname "$0")
for last; do :; done
target="$here"
case "$*" in *"--python "*) target=$(dirname "$(echo "$*" | sed 's/.*--python \\([^ ]*\\).*/\\1/')") ;; esac
case "$*" in
  "-I -c "*)
    packages='${JSON.stringify(fake.packages ?? {})}' site=null
    [ -f "$here/packages" ] && packages=$(cat "$here/packages") && site="\\"$here\\""
    printf '%s,"executable":"%s","packages":%s,"sitePackages":%s}\\n' '${JSON.stringify(facts).slice(0, -1)}' "$0" "$packages" "$site" ;;
  *"-m venv "*)
    echo "$*" >> "$FAKE_LOG"
    mkdir -p "$last/bin" && cp "$0" "$last/bin/python3" && echo '{}' > "$last/bin/packages" ;;
  *"-m pip --version"*) echo "pip ${fake.pip ?? '24.0'} from here"; exit ${fake.hasPip === false ? 1 : 0} ;;
  *"install"*)
    echo "$*" >> "$FAKE_LOG"
    [ -n "$FAKE_SLEEP" ] && sleep "$FAKE_SLEEP"
    case "$*" in *"$FAKE_FAIL_ON"*) [ -f "$FAKE_FAIL" ] && cat "$FAKE_FAIL" >&2 && exit 1 ;; esac
    case "$*" in
      *requirements-media.lock*) echo '${JSON.stringify({ ...allPackages, ...mediaPackages })}' > "$target/packages" ;;
      *requirements.lock*) echo '${JSON.stringify(allPackages)}' > "$target/packages" ;;
      *) echo '{"torch":"2.11.0"}' > "$target/packages" ;;
    esac ;;
  *) exit 1 ;;
esac
`;
  writeFileSync(path, text);
  chmodSync(path, 0o755);
  return path;
}

/** An environment folder with a fake interpreter. */
export const writeFakeEnvironment = (folder: string, fake: FakePython = { packages: allPackages }): string =>
  writeFakePython(join(folder, 'bin', 'python3'), fake);
