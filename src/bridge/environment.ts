import { join } from 'node:path';
import { managedHome } from '../python/home.ts';

/** Variables the sidecar may see: what Python, torch, CUDA and the downloads need, nothing else (no secrets by chance). */
const allowed = new Set([
  ...['PATH', 'HOME', 'USER', 'LOGNAME', 'SHELL', 'LANG', 'LANGUAGE', 'TZ', 'TMPDIR', 'TEMP', 'TMP', 'TERM'],
  ...[
    'LD_LIBRARY_PATH',
    'LD_PRELOAD',
    'DYLD_LIBRARY_PATH',
    'XDG_CACHE_HOME',
    'SYSTEMROOT',
    'LOCALAPPDATA',
    'USERPROFILE',
  ],
  ...['SSL_CERT_FILE', 'SSL_CERT_DIR', 'REQUESTS_CA_BUNDLE', 'HTTP_PROXY', 'HTTPS_PROXY', 'NO_PROXY'],
  ...['ATEN_CPU_CAPABILITY', 'GLIBC_TUNABLES', 'RCM_BRIDGE_HOME', 'VIRTUAL_ENV', 'CONDA_PREFIX'],
]);
const allowedPrefixes = [
  ...['LC_', 'CUDA_', 'NVIDIA_', 'NCCL_', 'OMP_', 'MKL_', 'OPENBLAS_', 'KMP_', 'GOMP_', 'MALLOC_'],
  ...['TORCH_', 'TORCHINDUCTOR_', 'PYTORCH_', 'TRITON_', 'HF_', 'SLURM_'],
];

/**
 * Environment of the sidecar: the allow-list, then `extra`, then what keeps Python to itself (no user site, no byte code
 * beside our sources, but where PYTHONPYCACHEPREFIX says or in our own folder).
 */
export function sidecarEnvironment(
  env: NodeJS.ProcessEnv,
  extra: Readonly<Record<string, string>> = {},
): Record<string, string> {
  const passed = Object.entries(env).filter(
    (entry): entry is [string, string] => entry[1] !== undefined && isAllowed(entry[0].toUpperCase()),
  );
  return {
    ...Object.fromEntries(passed),
    ...extra,
    PYTHONNOUSERSITE: '1',
    PYTHONPYCACHEPREFIX: env.PYTHONPYCACHEPREFIX || join(managedHome(env), 'pycache'),
    PYTHONIOENCODING: 'utf-8',
  };
}

const isAllowed = (name: string): boolean =>
  allowed.has(name) || allowedPrefixes.some(prefix => name.startsWith(prefix));
