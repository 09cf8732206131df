export { installDevTools } from './dev-tools.ts';
export { describePython, type PythonDescription } from './doctor.ts';
export { type FindPythonOptions, type PythonEnvironment, resolvePython, searchPython } from './find.ts';
export { listGpus } from './gpus.ts';
export { managedHome } from './home.ts';
export { probePython } from './probe.ts';
export { type Consent, ensurePython, type SetupOptions, setupManaged, setupMedia } from './provision.ts';
export { mediaNames } from './requirements.ts';
