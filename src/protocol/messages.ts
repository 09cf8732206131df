import { z } from 'zod';

/*
 * The messages that cross the border, protocol version 1. This file is the authority: schema/protocol.v1.json and
 * docs/protocol.md are generated from it, py/rcm_sidecar/protocol.py mirrors it. No logic here.
 */

/** A whole number both msgpack libraries write as an integer: msgpackr writes larger ones as floats. */
const count = z.int().min(0).max(4294967295);
/** Bytes or seconds: any size, so it travels as a float. */
const amount = z.number().min(0);
/** Training produces NaN and infinities; msgpack carries them, so they must be allowed. */
const real = z.custom<number>(value => typeof value === 'number').meta({ type: 'number' });
const values = z.record(z.string(), real);
/** A free map; what stands in it is checked by the layer that knows it. */
const map = z.record(z.string(), z.unknown());

export const activityName = z.enum([
  'idle',
  'loading',
  'compiling',
  'training',
  'sampling',
  'evaluating',
  'checkpointing',
]);
export const networkName = z.enum(['student', 'ema']);
export const samplerName = z.enum(['train', 'heldOut', 'teacher', 'student']);
export const layoutName = z.enum(['official', 'diffusers', 'comfyui']);
export const familyName = z.enum(['wan2.1', 'cosmos-predict2']);
export const deviceName = z.enum(['auto', 'cpu', 'cuda']);
export const hubLayoutName = z.enum(['official', 'diffusers']);
export const weightsDtypeName = z.enum(['bf16', 'fp16', 'fp32']);
export const dtypeName = z.enum(['u8', 'i8', 'i16', 'i32', 'i64', 'f16', 'bf16', 'f32', 'f64', 'bool']);

/** A body without fields. */
export const empty = z.strictObject({});

export const tensorHeader = z
  .strictObject({
    name: z.string(),
    dtype: dtypeName,
    shape: z.array(count),
    nbytes: amount,
    frames: z.tuple([count, count]),
  })
  .describe(
    'One tensor: its little-endian C-order bytes follow in frames[0]..frames[1], both included; frame 1 is the first after the envelope. No bytes: no frames, written [k, k - 1].',
  );

export const envelope = z
  .strictObject({
    v: count.describe('protocol major'),
    t: z.string().describe('message type'),
    id: z.string().optional().describe('request id'),
    re: z.string().optional().describe('the request id this answers'),
    run: z.string().optional().describe('run id'),
    seq: count.optional().describe('number of an event, without gaps, from 0 for each sidecar'),
    ts: z.number().describe('seconds since the epoch'),
    b: map.describe('body, by type'),
    x: z.array(tensorHeader).optional().describe('tensors in the frames that follow'),
  })
  .describe('The map in the first frame of every message.');

export const startLine = z
  .strictObject({
    token: z.string(),
    endpoints: z.strictObject({ ctl: z.string(), evt: z.string(), blob: z.string() }),
    ppid: count,
    protocol: count,
  })
  .describe('One line of JSON on stdin, before any message; stdin then stays open, its end ends the sidecar.');

const frame = z.strictObject({ file: z.string(), line: count, function: z.string(), text: z.string() });
const errorLink = z.strictObject({ type: z.string(), message: z.string(), frames: z.array(frame) });

export const errorBody = z
  .strictObject({
    code: z.string(),
    message: z.string(),
    hint: z.string().nullable(),
    chain: z.array(errorLink),
    traceback: z.string(),
    step: count.nullable(),
    details: map,
  })
  .describe('An error with its chain of exceptions, the outermost first.');

const gpu = z.strictObject({ name: z.string(), memoryBytes: amount });

/** Control messages from Python to Node. */
export const controlToNode = {
  hello: z
    .strictObject({
      token: z.string(),
      protocol: z.tuple([count, count]),
      schemaHash: z.string(),
      package: z.string(),
      pid: count,
      python: z.string(),
      platform: z.string(),
    })
    .describe(
      'First message, before torch is imported. protocol is [min, max]; schemaHash is sha256 of protocol.v1.json.',
    ),
  ready: z
    .strictObject({
      torch: z.string(),
      cuda: z.string().nullable(),
      cpuCapability: z.string(),
      threads: count,
      gpus: z.array(gpu),
      packages: z.record(z.string(), z.string()),
    })
    .describe('Torch is imported; jobs may be started.'),
  ok: z.strictObject({ value: map }).describe('Success of the request `re`.'),
  error: errorBody,
  heartbeat: z
    .strictObject({ activity: activityName, step: count, queued: count, dropped: count, rssBytes: amount })
    .describe(
      'Each second, from the I/O thread: what the job does, its last step, events not yet sent, progress dropped.',
    ),
  bye: z.strictObject({ code: count }).describe('Last message; the process then exits with this code.'),
} as const;

const planRow = z.strictObject({ sampler: samplerName, steps: count.nullable(), guidance: z.number().nullable() });

export const evaluationPlan = z
  .strictObject({
    rows: z.array(planRow),
    samples: count,
    seed: count,
    network: networkName,
    features: z.string().nullable(),
    metrics: z.array(z.string()),
    neighbours: count,
    bootstrapResamples: count,
    previewSteps: z.array(count),
  })
  .describe('What an evaluation computes.');

const trainingStart = {
  config: map,
  runId: z.string(),
  runDir: z.string(),
  attempt: count,
  resumeFrom: z.string().nullable(),
  allowDrift: z.boolean(),
  cacheDir: z.string(),
  plan: evaluationPlan,
  smoke: z.boolean(),
};

const weightsStart = {
  source: z.string(),
  model: z.string().nullable(),
  overrides: map,
};

/** A set of training data: latents and text states of prompts. Processes deal its shards out among themselves. */
const setStart = {
  network: z.strictObject({ name: z.string(), overrides: map }),
  encoders: z.string(),
  negative: z.string(),
  frames: count,
  height: count,
  width: count,
  device: deviceName,
  share: count,
  shares: count,
  outDir: z.string(),
  cacheDir: z.string(),
};

export const runStart = z
  .discriminatedUnion('job', [
    z.strictObject({ job: z.literal('distill'), ...trainingStart }),
    z.strictObject({ job: z.literal('pretrain'), ...trainingStart }),
    z.strictObject({
      job: z.literal('sample'),
      source: z.string(),
      steps: count,
      num: count,
      seed: count,
      label: count.nullable(),
      teacher: z.boolean(),
      outDir: z.string(),
      threads: count.nullable(),
    }),
    z.strictObject({
      job: z.literal('render'),
      source: z.string(),
      encoders: z.string().nullable(),
      network: z.strictObject({ name: z.string(), overrides: map }).nullable(),
      teacher: z.boolean(),
      teacherSampler: z
        .strictObject({
          kind: z.enum(['euler', 'unipc']),
          steps: count,
          shift: z.number(),
          guidance: z.number(),
          negative: z.string(),
        })
        .nullable(),
      prompts: z.array(z.string()),
      num: count,
      seed: count,
      steps: count.nullable(),
      frames: count.nullable(),
      height: count.nullable(),
      width: count.nullable(),
      device: deviceName,
      outDir: z.string(),
      cacheDir: z.string(),
    }),
    z.strictObject({ job: z.literal('inspect'), ...weightsStart }),
    z.strictObject({ job: z.literal('verify'), ...weightsStart }),
    z.strictObject({
      job: z.literal('convert'),
      ...weightsStart,
      layout: layoutName,
      out: z.string(),
      dtype: weightsDtypeName.nullable(),
      check: z.boolean(),
      overwrite: z.boolean(),
    }),
    z.strictObject({
      job: z.literal('fetch'),
      repository: z.string(),
      revision: z.string(),
      layout: hubLayoutName.nullable(),
      files: z.array(z.string()),
      encoders: z.boolean(),
      download: z.boolean(),
    }),
    z.strictObject({
      job: z.literal('build'),
      ...setStart,
      source: z.string(),
      sampler: z.strictObject({ steps: count, shift: z.number(), guidance: z.number(), sigmaMax: z.number() }),
      promptsFile: z.string(),
      samples: count,
      seed: count,
    }),
    z.strictObject({ job: z.literal('encode'), ...setStart, folder: z.string(), list: z.string() }),
  ])
  .describe(
    'Start a job; ok comes at once when it is accepted, the outcome is the event end. Paths are absolute. render draws a picture or video of each prompt and seed, from weights with or without a sampler.json; what is null is as the weights say or were released. inspect, verify and convert are about weight files: model null means the network their shapes show, dtype null each tensor as it is stored. fetch gets them from the hub, or without download only says what that takes. build and encode write a set of training data, of the samples of a teacher or of the pictures and videos that a list names; promptsFile is a JSON array, too long for a message; share is this process, of shares; step of the end is the number of samples it made.',
  );

/** Control messages from Node to Python. All but welcome are requests, answered by ok or error. */
export const controlToPython = {
  welcome: z
    .strictObject({
      protocol: count,
      limits: z.strictObject({ frameBytes: count, metricIntervalMs: count, heartbeatIntervalMs: count }),
    })
    .describe('Answer to hello: the protocol agreed on and what the sidecar keeps to.'),
  'run.start': runStart,
  'run.cancel': z
    .strictObject({ checkpoint: z.boolean(), deadlineMs: count })
    .describe('End the job at the next step. Node kills the sidecar when no end has come after deadlineMs.'),
  'run.pause': empty.describe('Stand still after the current step; the event paused follows.'),
  'run.continue': empty.describe('Go on; the event continued follows.'),
  'run.checkpoint': z
    .strictObject({ reason: z.string() })
    .describe('Write a checkpoint at the next step; ok {value: {step, path}} when it is on disk.'),
  'run.sample': z
    .strictObject({ steps: count, num: count, seed: count, label: count.nullable() })
    .describe('Draw samples with the student as it is; ok when the blob is sent.'),
  status: empty.describe('Ask for {activity, step, job, queued, dropped}.'),
  shutdown: z
    .strictObject({ deadlineMs: count })
    .describe('Cancel what runs, without a checkpoint, send what is queued, say bye and exit.'),
} as const;

const metricItem = z.strictObject({ step: count, phase: z.string(), time: z.number(), values });

const metricValue = z.strictObject({
  value: real.nullable(),
  low: real.nullable(),
  high: real.nullable(),
  reason: z.string().optional(),
});

const row = z.strictObject({
  sampler: samplerName,
  steps: count.nullable(),
  guidance: z.number().nullable(),
  calls: count,
  n: count,
  seed: count.nullable(),
  seconds: amount.nullable(),
  metrics: z.record(z.string(), metricValue),
});

const weightsMismatch = z.strictObject({
  missing: z.array(z.string()),
  unexpected: z.array(z.string()),
  misshaped: z.array(z.string()),
  integers: z.array(z.string()),
  summary: z.string(),
  cause: z.string(),
});

export const weightsInspection = z
  .strictObject({
    path: z.string(),
    files: z.array(z.string()),
    layout: layoutName.nullable(),
    prefix: z.string(),
    family: familyName.nullable(),
    network: z.strictObject({ name: z.string(), overrides: map }).nullable(),
    dtypes: z.record(z.string(), count),
    tensors: count,
    parameters: amount,
    bytes: amount,
    mismatch: weightsMismatch.nullable(),
  })
  .describe(
    'What the headers of weights say: network is the one compared with, mismatch null when they are exactly its weights; layout, family and network are null for another kind of file.',
  );

const weightsForward = z.strictObject({
  difference: real.nullable(),
  reason: z.string().nullable(),
});

const stepBody = z.strictObject({ step: count });

/** Events: PUSH in Python, PULL in Node, numbered by seq. */
export const events = {
  activity: z.strictObject({ activity: activityName, step: count }).describe('What the sidecar does from now on.'),
  progress: z
    .strictObject({
      step: count,
      steps: count,
      phase: z.string(),
      studentUpdates: count,
      criticUpdates: count,
      samplesPerSecond: real,
      etaSeconds: real,
      values,
    })
    .describe('How far the job is: the only event of which only the newest is kept when Node is slow.'),
  metric: z
    .strictObject({ items: z.array(metricItem) })
    .describe(
      'Metrics, lossless, in batches: one message each 100 ms, and one before any other event so that order holds.',
    ),
  checkpoint: z
    .strictObject({ step: count, path: z.string(), bytes: amount, seconds: amount, reason: z.string() })
    .describe('A checkpoint is complete on disk; path is relative to the run directory.'),
  evaluation: z
    .strictObject({
      step: count,
      network: networkName,
      features: z.string().nullable(),
      featureDimension: count.nullable(),
      floors: z.strictObject({ realReal: real.nullable(), teacherTeacher: real.nullable() }),
      rows: z.array(row),
      seconds: amount,
    })
    .describe('All rows of one evaluated network.'),
  fetchPlan: z
    .strictObject({
      repository: z.string(),
      revision: z.string(),
      commit: z.string(),
      license: z.string().nullable(),
      gated: z.boolean(),
      path: z.string(),
      files: z.array(z.strictObject({ name: z.string(), bytes: amount, present: z.boolean() })),
      bytes: amount,
      missingBytes: amount,
    })
    .describe(
      'What fetching takes: bytes of all files, missingBytes still to come, path the folder that will hold them.',
    ),
  fetched: z
    .strictObject({
      path: z.string(),
      hashes: z.array(z.strictObject({ file: z.string(), sha256: z.string() })),
      seconds: amount,
    })
    .describe('All files are in the folder; hashes of those whose hash the hub lists, all equal to it.'),
  inspected: weightsInspection,
  verified: z
    .strictObject({
      inspection: weightsInspection,
      hashes: z.array(z.strictObject({ file: z.string(), sha256: z.string() })),
      seconds: amount,
    })
    .describe('Weights are complete and finite; hashes are those of files whose hash is known, all equal to it.'),
  converted: z
    .strictObject({
      inspection: weightsInspection,
      path: z.string(),
      files: z.array(z.string()),
      bytes: amount,
      checked: z.strictObject({ tensors: count, forward: weightsForward }).nullable(),
      seconds: amount,
    })
    .describe(
      'A conversion is complete on disk. checked: every tensor was read back equal; forward.difference is the largest one of a forward pass of both, null with a reason when it was not run.',
    ),
  rendered: z
    .strictObject({
      path: z.string(),
      prompt: z.string(),
      seed: count,
      steps: count,
      frames: count,
      height: count,
      width: count,
      seconds: amount,
    })
    .describe('A picture or video is complete on disk; seconds of sampling and decoding it.'),
  alarm: z
    .strictObject({ code: z.string(), message: z.string(), step: count, details: map })
    .describe('Something a person should look at; the job goes on.'),
  log: z
    .strictObject({ level: z.enum(['debug', 'info', 'warn', 'error']), message: z.string(), fields: map })
    .describe('A log record.'),
  paused: stepBody.describe('The job stands still.'),
  continued: stepBody.describe('The job goes on.'),
  undelivered: z
    .strictObject({ first: count, last: count, path: z.string() })
    .describe(
      'Node did not read for 30 s: the events first..last stand in this file instead, as msgpack envelopes one after the other.',
    ),
  end: z
    .strictObject({
      state: z.enum(['succeeded', 'stopped', 'failed']),
      step: count,
      studentUpdates: count,
      criticUpdates: count,
      checkpoint: z.string().nullable(),
      exports: z.array(z.strictObject({ layout: z.string(), path: z.string() })),
      blobs: count,
      error: errorBody.nullable(),
    })
    .describe('The job is over; blobs is the number of blob messages it sent.'),
} as const;

/** Blobs: bulk data on a socket of its own, so that it never delays an event. */
export const blobs = {
  sample: z
    .strictObject({
      step: count,
      kind: z.enum(['preview', 'evaluation', 'request']),
      title: z.string(),
      rows: z.array(z.string()),
      columns: z.array(z.string()),
    })
    .describe('A grid of images; its tensor `pixels` is u8 [rows, columns, H, W, 1 or 3].'),
} as const;

export type ActivityName = z.infer<typeof activityName>;
export type DtypeName = z.infer<typeof dtypeName>;
export type TensorHeader = z.infer<typeof tensorHeader>;
export type Envelope = z.infer<typeof envelope>;
export type StartLine = z.infer<typeof startLine>;
export type ErrorBody = z.infer<typeof errorBody>;
export type EvaluationPlan = z.infer<typeof evaluationPlan>;
export type RunStart = z.infer<typeof runStart>;
export type Hello = z.infer<typeof controlToNode.hello>;
export type Ready = z.infer<typeof controlToNode.ready>;
export type Heartbeat = z.infer<typeof controlToNode.heartbeat>;
export type Limits = z.infer<typeof controlToPython.welcome>['limits'];
export type LayoutName = z.infer<typeof layoutName>;
export type WeightsDtypeName = z.infer<typeof weightsDtypeName>;
export type WeightsInspection = z.infer<typeof weightsInspection>;
export type EvaluationRow = z.infer<typeof row>;
export type MetricItem = z.infer<typeof metricItem>;

/** Requests Node may make, by type. */
export type RequestType = Exclude<keyof typeof controlToPython, 'welcome'>;
export type RequestBody<T extends RequestType> = z.infer<(typeof controlToPython)[T]>;

export type EventType = keyof typeof events;
export type EventBody<T extends EventType> = z.infer<(typeof events)[T]>;

/** An event as it leaves the bridge; `undelivered` never does, its events are replayed instead. */
export type SidecarEvent = {
  [T in Exclude<EventType, 'undelivered'>]: {
    readonly type: T;
    readonly seq: number;
    readonly time: number;
    readonly run: string | undefined;
    readonly body: EventBody<T>;
  };
}[Exclude<EventType, 'undelivered'>];

export type BlobType = keyof typeof blobs;
export type BlobBody<T extends BlobType> = z.infer<(typeof blobs)[T]>;
