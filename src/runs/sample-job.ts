/** `sample`: draws from a finished run, an export, a teacher or a weights file; touches no run directory. */
import fs from 'node:fs';
import { basename, join, resolve } from 'node:path';
import type { SidecarBlob } from '../bridge/event-stream.ts';
import { RcmBridgeError, throwIfAborted } from '../errors/index.ts';
import type { RunStart } from '../protocol/messages.ts';
import { isHubLocator } from '../weights/hub-cache.ts';
import { readStoredConfig } from './config-file.ts';
import { anySignal, type BridgeContext } from './context.ts';
import type { SampleOptions, SampleResult } from './options.ts';
import { writeSampleGrid } from './sample-files.ts';
import { runSidecarJob } from './sidecar-job.ts';
import { findRun } from './store.ts';
import { folderOf, locateWeights, teacherLocator } from './weights.ts';

const studentSteps = 4;
const exportLayouts = ['official', 'diffusers', 'comfyui'];

/** @throws E_RUN_NOT_FOUND, E_WEIGHTS_*, E_PYTHON_*, E_SIDECAR_*, E_ABORTED */
export async function drawSamples(context: BridgeContext, name: string, options: SampleOptions): Promise<SampleResult> {
  const signal = anySignal(context.options.signal, options.signal);
  throwIfAborted(signal);
  const source = locateSource(context, name, options.teacher ?? false);
  const out = resolve(context.cwd, options.out ?? 'samples');
  const { num = 10, seed = 0, label = null, prompt = null, teacher = false } = options;
  const steps = options.steps ?? defaultSteps(source);
  const start: RunStart = {
    job: 'sample',
    source,
    steps,
    num,
    seed,
    label,
    prompt,
    teacher,
    outDir: out,
    threads: null,
  };
  const files: string[] = [];
  const onBlob = async ({ body, tensors }: SidecarBlob): Promise<void> => {
    if (!tensors.pixels) throw new RcmBridgeError('E_PROTOCOL', 'A sample came without its pixels.');
    const { shape, bytes } = tensors.pixels;
    files.push(join(out, await writeSampleGrid(out, body, { shape, data: bytes })));
  };
  await runSidecarJob(context, { start, signal, onBlob });
  return { files, out, steps, seed };
}

/** The folder or file of weights a user means: a path that holds weights, or a run's export or teacher. */
function locateSource(context: BridgeContext, name: string, teacher: boolean): string {
  if (name.startsWith('builtin:')) return locateWeights(name);
  if (isHubLocator(name)) return checked(locateWeights(name, undefined, context.env));
  const path = resolve(context.cwd, name);
  const isThere = fs.existsSync(path) && !fs.existsSync(join(path, 'run.json'));
  const looksLikePath = name.includes('/') || name.includes('\\') || /\.(safetensors|pth|pt|bin)$/.test(name);
  if (isThere && (looksLikePath || fs.existsSync(join(path, 'sampler.json')))) return checked(path);
  if (looksLikePath && !fs.existsSync(path)) {
    throw new RcmBridgeError('E_WEIGHTS_NOT_FOUND', `There are no weights at ${path}.`, {
      hint: 'Give a run, an export folder or a weights file.',
    });
  }
  const run = findRun(context.runsDir, name, context.cwd);
  if (teacher) {
    const weights = teacherLocator(readStoredConfig(run.dir));
    return weights.startsWith('builtin:')
      ? locateWeights(weights)
      : checked(locateWeights(weights, undefined, context.env));
  }
  const found = exportLayouts.map(layout => join(run.dir, 'export', layout)).find(folder => fs.existsSync(folder));
  if (found) return checked(found);
  throw new RcmBridgeError('E_WEIGHTS_NOT_FOUND', `Run ${run.record.id} has no export: it is ${run.record.state}.`, {
    hint:
      run.record.state === 'stopped' || run.record.state === 'failed'
        ? `Finish it first: rcm-bridge resume ${run.record.id}`
        : 'Exports are written when a run ends.',
  });
}

/** Weights are of use only with the sampler.json that says what network they belong to. */
function checked(path: string): string {
  const folder = folderOf(locateWeights(path));
  if (fs.existsSync(join(folder, 'sampler.json'))) return path;
  throw new RcmBridgeError('E_WEIGHTS_SAMPLER', `There is no sampler.json beside ${basename(path)} in ${folder}.`, {
    hint: 'Use a run, or a folder of whole weights below its export/, such as export/official.',
  });
}

/** A student takes 4 steps; a teacher as many as its sampler.json says. */
function defaultSteps(source: string): number {
  const folder = folderOf(source);
  try {
    const { kind, sampler } = JSON.parse(fs.readFileSync(join(folder, 'sampler.json'), 'utf8')) as {
      kind?: string;
      sampler?: { steps?: number };
    };
    return kind === 'teacher' ? (sampler?.steps ?? studentSteps) : studentSteps;
  } catch {
    throw new RcmBridgeError('E_WEIGHTS_SAMPLER', `${join(folder, 'sampler.json')} cannot be read.`, {
      hint: 'Export the run again, or use another one.',
    });
  }
}
