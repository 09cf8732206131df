/** `sample`: draws from a finished run, an export, a teacher or released weights; touches no run directory. */
import { join, resolve } from 'node:path';
import type { SidecarBlob } from '../bridge/event-stream.ts';
import { RcmBridgeError, throwIfAborted } from '../errors/index.ts';
import type { RunStart } from '../protocol/messages.ts';
import { anySignal, type BridgeContext } from './context.ts';
import type { SampleOptions, SampleResult } from './options.ts';
import { readPrompts } from './prompts.ts';
import { renderPrompts } from './render-job.ts';
import { writeSampleGrid } from './sample-files.ts';
import { findSampleSource, type SampleSource } from './sample-source.ts';
import { runSidecarJob } from './sidecar-job.ts';

const studentSteps = 4;
const labelledSamples = 10;

/** @throws E_USAGE, E_RUN_NOT_FOUND, E_WEIGHTS_*, E_PYTHON_*, E_SIDECAR_*, E_ABORTED */
export async function drawSamples(context: BridgeContext, name: string, options: SampleOptions): Promise<SampleResult> {
  throwIfAborted(anySignal(context.options.signal, options.signal));
  const prompts = promptsOf(context, options);
  const { teacher = false } = options;
  const source = findSampleSource(context, name, { teacher, forPrompts: prompts.length > 0 });
  if (source.sampler?.takes === 'labels') {
    refuseForLabels(options, prompts);
    return drawLabels(context, source, options);
  }
  if (prompts.length === 0) {
    throw new RcmBridgeError('E_USAGE', 'This model draws prompts, not labels.', {
      hint: 'Give --prompt TEXT, or --prompts with a file or builtin:video-8.',
    });
  }
  return renderPrompts(context, source, prompts, options);
}

function promptsOf({ cwd }: BridgeContext, { prompt, prompts, label }: SampleOptions): readonly string[] {
  const listed = typeof prompts === 'string' ? readPrompts(prompts, cwd) : (prompts ?? []);
  const all = [...(prompt === undefined ? [] : [prompt]), ...listed];
  if (all.some(text => text.trim() === '')) {
    throw new RcmBridgeError('E_USAGE', 'A prompt is empty.', { hint: 'Say what to draw.' });
  }
  if (all.length === 0 || label === undefined) return all;
  throw new RcmBridgeError('E_USAGE', 'A label and a prompt were given.', { hint: 'A model takes one or the other.' });
}

function refuseForLabels(options: SampleOptions, prompts: readonly string[]): void {
  if (prompts.length > 0) {
    throw new RcmBridgeError('E_USAGE', 'This model takes labels, not prompts.', { hint: 'Use --label.' });
  }
  const given = (['frames', 'height', 'width', 'encoders', 'device'] as const).find(key => options[key] !== undefined);
  if (given === undefined) return;
  throw new RcmBridgeError('E_USAGE', `--${given} is for models that draw prompts; this one takes labels.`, {
    hint: `Leave --${given} out.`,
  });
}

async function drawLabels(
  context: BridgeContext,
  { path, sampler }: SampleSource,
  options: SampleOptions,
): Promise<SampleResult> {
  const out = resolve(context.cwd, options.out ?? 'samples');
  const { num = labelledSamples, seed = 0, label = null, teacher = false } = options;
  const steps = options.steps ?? sampler?.steps ?? studentSteps;
  const start: RunStart = {
    job: 'sample',
    source: path,
    steps,
    num,
    seed,
    label,
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
  await runSidecarJob(context, { start, signal: anySignal(context.options.signal, options.signal), onBlob });
  return { files, out, steps, seed, samples: [] };
}
