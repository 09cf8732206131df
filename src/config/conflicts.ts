import type { RcmConfigOutput } from './blocks/index.ts';
import { type Conflict, conflict } from './conflict.ts';
import { findParallelConflicts } from './parallel.ts';
import { findSizeConflicts } from './sizes.ts';

/** Conflicts between keys, first the cheap ones; empty if there is none. */
export const findConflicts = (config: RcmConfigOutput): readonly Conflict[] => [
  ...findParallelConflicts(config),
  ...samplerConflicts(config),
  ...dataConflicts(config),
  ...evaluationConflicts(config),
  ...gateConflicts(config),
  ...optimizerConflicts(config),
  ...weightsConflicts(config),
  ...attentionConflicts(config),
  ...loraConflicts(config),
  ...findSizeConflicts(config),
];

function weightsConflicts({ model, teacher }: RcmConfigOutput): readonly Conflict[] {
  if (teacher.weights !== 'model' || model.path !== null) return [];
  return [conflict('teacher.weights', 'is model, but model.path is null', 'Set model.path to the downloaded folder.')];
}

/** What a data set has decides what conditions and features there are. */
function dataConflicts({ data, teacher, evaluation }: RcmConfigOutput): readonly Conflict[] {
  const { negative } = teacher;
  if (data.kind !== 'latentShards') {
    if (negative === 'empty' || negative === 'zeros') return [];
    return [conflict('teacher.negative', `is ${negative}, but ${data.kind} have labels`, 'Use empty or zeros.')];
  }
  const conflicts: Conflict[] = [];
  if (data.path === null) {
    conflicts.push(
      conflict('data.path', 'is null, but data.kind is latentShards', 'Set it to the folder of the *.tar.'),
    );
  }
  if (negative === 'empty' || negative.startsWith('text:')) {
    const text = `is ${negative}, but stored embeddings have no such condition`;
    conflicts.push(conflict('teacher.negative', text, 'Use default, zeros or the path of an embedding (*.pt).'));
  }
  if (evaluation.features !== null) {
    const text = `is ${evaluation.features}, but latentShards hold no pixels to take features of`;
    conflicts.push(conflict('evaluation.features', text, 'Set it to null, and evaluation.metrics to [].'));
  }
  return conflicts;
}

function samplerConflicts({ student, losses }: RcmConfigOutput): readonly Conflict[] {
  const first = Math.atan(student.sampler.sigmaMax);
  const lists = [{ path: 'student.sampler.times', times: student.sampler.times }];
  const { rolloutSteps, rolloutTimes } = losses.dmd;
  if (rolloutTimes !== 'random') lists.push({ path: 'losses.dmd.rolloutTimes', times: rolloutTimes });
  const falling = lists
    .filter(({ times }) => times.some((time, index) => time >= (times[index - 1] ?? first)))
    .map(({ path }) =>
      conflict(path, `must fall, starting below atan(sigmaMax) = ${first.toFixed(4)}`, 'Example: [1.5, 1.4, 1.0]'),
    );
  if (rolloutTimes === 'random' || rolloutTimes.length >= rolloutSteps - 1) return falling;
  return [
    ...falling,
    conflict(
      'losses.dmd.rolloutTimes',
      `has ${rolloutTimes.length} times, too few for losses.dmd.rolloutSteps ${rolloutSteps}`,
      `Give ${rolloutSteps - 1} times, or random.`,
    ),
  ];
}

function evaluationConflicts({ evaluation, student }: RcmConfigOutput): readonly Conflict[] {
  const longest = student.sampler.times.length + 1;
  const conflicts: Conflict[] = [];
  if (evaluation.steps.some(steps => steps > longest)) {
    conflicts.push(
      conflict(
        'evaluation.steps',
        `asks for more steps than student.sampler.times has (${longest})`,
        'Add times, or take fewer steps.',
      ),
    );
  }
  if (evaluation.network === 'ema' && student.ema.length === 0) {
    conflicts.push(
      conflict('evaluation.network', 'is ema, but student.ema is empty', 'Set evaluation.network to student.'),
    );
  }
  return conflicts;
}

function gateConflicts({ evaluation }: RcmConfigOutput): readonly Conflict[] {
  return evaluation.gates.flatMap((gate, index) => {
    const path = `evaluation.gates.${index}`;
    if ((gate.atMost === null) === (gate.atLeast === null)) {
      return [conflict(path, 'needs either atMost or atLeast', 'Example: { metric: recall, steps: 1, atLeast: 0.75 }')];
    }
    if (!evaluation.metrics.includes(gate.metric)) {
      return [
        conflict(
          path,
          `judges ${gate.metric}, which evaluation.metrics does not list`,
          'Add the metric, or remove the gate.',
        ),
      ];
    }
    if (!evaluation.steps.includes(gate.steps)) {
      return [
        conflict(
          path,
          `judges ${gate.steps} steps, which evaluation.steps does not list`,
          'Add the number, or remove the gate.',
        ),
      ];
    }
    if (gate.relativeTo === 'teacher' && !evaluation.teacherSteps.includes(gate.steps)) {
      return [
        conflict(
          path,
          `compares with the teacher at ${gate.steps} steps, which evaluation.teacherSteps does not list`,
          'Add the number, or remove the gate.',
        ),
      ];
    }
    return [];
  });
}

function optimizerConflicts(config: RcmConfigOutput): readonly Conflict[] {
  const owners = ['student', 'critic', 'pretrain'] as const;
  return owners.flatMap(owner => {
    const { schedule, finalShare } = config[owner].optimizer;
    if (finalShare === null || schedule === 'cosine') return [];
    return [
      conflict(
        `${owner}.optimizer.finalShare`,
        `belongs to the cosine schedule, not to ${schedule}`,
        'Set it to null.',
      ),
    ];
  });
}

function attentionConflicts({ compute }: RcmConfigOutput): readonly Conflict[] {
  const { attention, device } = compute;
  if (device === 'cuda' || attention === 'auto' || attention === 'eager') return [];
  return [
    conflict(
      'compute.attention',
      `is ${attention}, a kernel for GPUs, and compute.device is ${device}`,
      'Use auto, or compute.device: cuda.',
    ),
  ];
}

/** With LoRA the roles share the teacher's weights, so a role starts from them or from adapters of an earlier run. */
function loraConflicts({ student, critic }: RcmConfigOutput): readonly Conflict[] {
  if (student.lora === null) return [];
  const { targets } = student.lora;
  const repeated = targets.find((target, index) => targets.indexOf(target) !== index);
  const inits = { 'student.init': student.init, 'critic.init': critic.init };
  const conflicts = Object.entries(inits)
    .filter(([, init]) => init !== 'teacher' && !init.endsWith('.safetensors'))
    .map(([path, init]) =>
      conflict(
        path,
        `is ${init}, but with student.lora all roles share the teacher's weights`,
        'Use teacher, an adapter file (export/lora/official.safetensors of a run), or student.lora: null.',
      ),
    );
  if (repeated === undefined) return conflicts;
  const hint = `Use [${[...new Set(targets)].join(', ')}].`;
  return [...conflicts, conflict('student.lora.targets', `names ${repeated} twice`, hint)];
}
