/** Process exit codes; docs/errors.md lists which error has which. */
export type ExitCode = 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 130 | 143;

interface CodeEntry {
  readonly exitCode: ExitCode;
  /** What it means, one sentence. */
  readonly summary: string;
  /** What to do about it, one sentence. */
  readonly fix: string;
}

/**
 * Every code an error of this package can carry, from TypeScript or from Python. Codes are stable, messages are not.
 * docs/errors.md is generated from this table. Alphabetical.
 */
export const errorCodes = {
  E_ABORTED: {
    exitCode: 130,
    summary: 'The work was cancelled by a signal or an AbortSignal.',
    fix: 'Nothing to mend; start it again, or `rcm-bridge resume` a run that has a checkpoint.',
  },
  E_ADAPTER_UNKNOWN: {
    exitCode: 2,
    summary: 'A network was asked for a LoRA adapter that it does not have.',
    fix: 'Set `student.lora`, or leave the adapter out.',
  },
  E_CHECKPOINT_CORRUPT: {
    exitCode: 5,
    summary: 'A checkpoint does not match its manifest: a file is missing, cut short or changed.',
    fix: 'Resume from an earlier one with `rcm-bridge resume <run> --from-step N`.',
  },
  E_CHECKPOINT_MISSING: {
    exitCode: 5,
    summary: 'The run has no checkpoint to go on from.',
    fix: 'Start the run again; `checkpoints.everySteps` sets how often one is written.',
  },
  E_CHECKSUM: {
    exitCode: 1,
    summary: 'Weights changed by themselves: the frozen teacher, or what processes should hold alike.',
    fix: 'Check memory and links of the machines named, and go on elsewhere from a checkpoint before it.',
  },
  E_CONFIG_EXTENDS_LOOP: {
    exitCode: 2,
    summary: 'A config extends itself, directly or through others.',
    fix: 'Remove one of the `extends` lines that the message lists.',
  },
  E_CONFIG_FIXED: {
    exitCode: 2,
    summary: 'A key has another value than the run began with, and it is none that may change on resume.',
    fix: 'Start a new run with it; `student.init` takes the weights of the old one.',
  },
  E_CONFIG_NOT_FOUND: {
    exitCode: 2,
    summary: 'There is no such config file or preset, or it cannot be read.',
    fix: 'Check the path; a name without a slash or extension is a preset from configs/.',
  },
  E_CONFIG_NOT_YET: {
    exitCode: 2,
    summary: 'The key exists, but this version acts on its documented value only.',
    fix: 'Remove the key, or give it the value that the message names.',
  },
  E_CONFIG_SYNTAX: {
    exitCode: 2,
    summary: 'A config file is no valid YAML, JSON, JavaScript or TypeScript, or no object.',
    fix: 'Mend the line that the message names.',
  },
  E_CONFIG_TYPES: {
    exitCode: 2,
    summary: 'TypeScript found a type error in a config file written in TypeScript.',
    fix: 'Mend the line that the message names; `rcm-bridge config check` prints them all.',
  },
  E_CONFIG_UNKNOWN_KEY: {
    exitCode: 2,
    summary: 'A config has a key that does not exist.',
    fix: 'Use the name that the message suggests; schema/config.v1.json lists all keys.',
  },
  E_CONFIG_VALUE: {
    exitCode: 2,
    summary: 'A config value has the wrong type, is out of range or does not fit another value.',
    fix: 'Give the key a value of the kind that the message names.',
  },
  E_CONSENT: {
    exitCode: 3,
    summary: 'Something has to be installed, overwritten or deleted, and nobody agreed to it.',
    fix: 'Add `--yes` to the command, or pass `allowInstall: true` to createBridge.',
  },
  E_DATA_BAD_SAMPLES: {
    exitCode: 1,
    summary: 'More samples of the training data are damaged than `data.maxBadSamples` allows.',
    fix: 'Build or copy the shards again that the log names, or raise `data.maxBadSamples`.',
  },
  E_DATA_CHANGED: {
    exitCode: 5,
    summary: 'The training data are not those the checkpoint was written with, or not the same on all nodes.',
    fix: 'Put the shards back as they were, or resume with `--allow-drift` on the new ones.',
  },
  E_DATA_NEGATIVE: {
    exitCode: 3,
    summary: 'The embedding of the negative prompt is missing or of another text encoder.',
    fix: 'Put it into the folder of the shards as negative.embed.pt, or name a file with `teacher.negative`.',
  },
  E_DATA_NOT_FOUND: {
    exitCode: 3,
    summary: 'There are no shards at `data.path`, or they hold no whole sample.',
    fix: 'Set `data.path` to a folder of *.tar; docs/data.md shows the layout.',
  },
  E_DATA_SHAPE: {
    exitCode: 2,
    summary: 'The latents or text embeddings have other sizes than the model takes.',
    fix: 'Set `model.frames`, `height` and `width` to those of the data, or use data of this model.',
  },
  E_DATA_SHARD: {
    exitCode: 3,
    summary: 'A shard is cut short, is no tar file, or cannot be read.',
    fix: 'Copy it again, or move it out of the folder to train without it.',
  },
  E_DISK_FULL: {
    exitCode: 3,
    summary: 'The disk or the quota is full.',
    fix: 'Free some space, or choose another folder with `--runs-dir` or RCM_BRIDGE_HOME.',
  },
  E_GPU: {
    exitCode: 3,
    summary: 'The config asks for a GPU that this machine or this torch does not have.',
    fix: 'Set `compute.device` to cpu, or install a torch build for your GPU.',
  },
  E_GPU_MEMORY: {
    exitCode: 3,
    summary: 'A run needs more memory than its GPUs have.',
    fix: 'Use what `rcm-bridge plan` says, or start it anyway with `--ignore-plan`.',
  },
  E_HUB_ACCESS: {
    exitCode: 3,
    summary: 'The hub does not let this machine read a repository: it is gated or private.',
    fix: 'Accept its terms on its page while signed in, then set HF_TOKEN or run `hf auth login`.',
  },
  E_HUB_HASH: {
    exitCode: 3,
    summary: 'A fetched file has another sha256 than the hub lists; it was removed.',
    fix: 'Fetch it again; if that does not help, a proxy between here and the hub changes files.',
  },
  E_HUB_NOT_FOUND: {
    exitCode: 3,
    summary: 'The hub has no such repository or revision, or it holds no weights that are known here.',
    fix: 'Check the locator, hf:OWNER/NAME@REVISION; a private repository needs HF_TOKEN.',
  },
  E_HUB_UNREACHABLE: {
    exitCode: 3,
    summary: 'The hub does not answer, or the connection broke.',
    fix: 'Check the network, HTTPS_PROXY and HF_ENDPOINT, and run the command again; it goes on where it stopped.',
  },
  E_INTERACTIVE_EXIT: {
    exitCode: 1,
    summary: 'The Python process behind `rcm-bridge repl` ended.',
    fix: 'Start the session again.',
  },
  E_INTERNAL: {
    exitCode: 1,
    summary: 'A defect of rcm-bridge itself.',
    fix: 'Run again with `-v` and report what it prints.',
  },
  E_NETWORK_OVERRIDE: {
    exitCode: 2,
    summary: '`model.overrides` names a setting that the network does not have, or gives it the wrong type.',
    fix: 'Use the name that the message suggests; null removes an inherited override.',
  },
  E_NETWORK_SIZE: {
    exitCode: 2,
    summary: 'The sizes in `model.overrides` do not fit each other.',
    fix: 'Change the size that the message names.',
  },
  E_NETWORK_UNKNOWN: {
    exitCode: 2,
    summary: '`model.name` is no network this version knows.',
    fix: 'Use the name that the message suggests.',
  },
  E_NODE_LOST: {
    exitCode: 4,
    summary: 'A machine of a run on several is gone: it was switched off, or its network failed.',
    fix: 'Look at the machine that the message names, then `rcm-bridge resume` on as many as the run has.',
  },
  E_NODE_VERSION: {
    exitCode: 3,
    summary: 'This version of Node.js is too old or not supported.',
    fix: 'Use Node.js 20.19, 22.12, 24 or newer.',
  },
  E_NON_FINITE: {
    exitCode: 1,
    summary: 'Too many updates were not finite (NaN or infinity).',
    fix: 'Look at diagnostics/ of the run; lower the learning rate, or start from other weights.',
  },
  E_NOT_BUILT: {
    exitCode: 3,
    summary: 'The package was cloned but not compiled.',
    fix: 'Run `make build`, or `npm ci && npm run build`.',
  },
  E_OFFLINE: {
    exitCode: 3,
    summary: 'Something would have to be downloaded, and `--offline` forbids it.',
    fix: 'Run once without `--offline`, or install what the message names yourself.',
  },
  E_OWNER_GONE: {
    exitCode: 4,
    summary: 'The process that owned the run ended without finishing it.',
    fix: 'Go on with `rcm-bridge resume <run>`.',
  },
  E_PROTOCOL: {
    exitCode: 4,
    summary: 'The Python sidecar sent something this version does not understand.',
    fix: 'Use the py/ folder that came with this package; if you did, report it.',
  },
  E_PYTHON: {
    exitCode: 1,
    summary: 'A call into Python raised an exception.',
    fix: 'The message and the Python frames say where.',
  },
  E_PYTHON_NOT_FOUND: {
    exitCode: 3,
    summary: 'No Python interpreter was found, or the one named does not start.',
    fix: 'Install CPython 3.11, 3.12 or 3.13, or name one with `--python`.',
  },
  E_PYTHON_PACKAGES: {
    exitCode: 3,
    summary: 'The interpreter lacks packages that the sidecar needs, or has other versions of them.',
    fix: 'Run the pip line that the message names, or leave `--python` out.',
  },
  E_PYTHON_SETUP: {
    exitCode: 3,
    summary: 'The managed Python environment could not be made.',
    fix: 'Mend what pip complains about and run `rcm-bridge env setup` again; it goes on where it stopped.',
  },
  E_PYTHON_VENV: {
    exitCode: 3,
    summary: 'This Python can make no virtual environment: venv and pip are both missing.',
    fix: 'Install the system package that the message names.',
  },
  E_PYTHON_VERSION: {
    exitCode: 3,
    summary: 'The interpreter is no CPython 3.11, 3.12 or 3.13.',
    fix: 'Name another one with `--python`.',
  },
  E_RENDEZVOUS: {
    exitCode: 3,
    summary: 'The machines of a run did not come together, or are not alike.',
    fix: 'Start the same command on all of them, each with its --node-rank; --rdzv is an address of machine 0.',
  },
  E_RUNS_DIR: {
    exitCode: 3,
    summary: 'The folder of the runs is a file, or cannot be written.',
    fix: 'Choose another folder with `--runs-dir`.',
  },
  E_RUN_BUSY: {
    exitCode: 2,
    summary: 'The run directory belongs to a process that is still alive.',
    fix: 'Wait for it, or stop it with `rcm-bridge runs cancel <run>`.',
  },
  E_RUN_DIR: {
    exitCode: 2,
    summary: 'The run directory is a file, or holds something that is not a run.',
    fix: 'Choose another `--run-dir`.',
  },
  E_RUN_ENDED: {
    exitCode: 2,
    summary: 'The run is over, so it cannot do what was asked of it.',
    fix: 'Go on with it by `rcm-bridge resume`, or look at it with `rcm-bridge runs show`.',
  },
  E_RUN_EXISTS: {
    exitCode: 2,
    summary: 'The run directory already holds a run.',
    fix: 'Go on with it by `rcm-bridge resume`, or add `--if-exists resume`.',
  },
  E_RUN_NOT_FOUND: {
    exitCode: 2,
    summary: 'There is no such run, or the prefix fits more than one.',
    fix: '`rcm-bridge runs list` prints all runs.',
  },
  E_SIDECAR_EXIT: {
    exitCode: 4,
    summary: 'The Python sidecar ended before its work was done.',
    fix: 'Look at logs/sidecar.log of the run, then go on with `rcm-bridge resume <run>`.',
  },
  E_SIDECAR_HANG: {
    exitCode: 4,
    summary: 'The Python sidecar stopped answering and was ended.',
    fix: 'The stacks are in diagnostics/ of the run; go on with `rcm-bridge resume <run>`.',
  },
  E_SIDECAR_START: {
    exitCode: 4,
    summary: 'The Python sidecar did not start or did not say hello in time.',
    fix: '`rcm-bridge doctor` checks the environment.',
  },
  E_SLURM: {
    exitCode: 3,
    summary: 'Slurm is not there, did not take a job, or ended it before its run began.',
    fix: 'The message has the words of Slurm or of the job; --slurm KEY=VALUE passes options to sbatch.',
  },
  E_TANGENT_GATE: {
    exitCode: 1,
    summary: 'The derivative that training would use is not the derivative of the network.',
    fix: 'Set `compute.attention: triton` or `eager`; if that passes, please report the kernel.',
  },
  E_TEACHER_CHECK: {
    exitCode: 5,
    summary: 'The teacher failed its check: output not finite, or guidance changes nothing.',
    fix: 'Check `teacher.weights` and `teacher.negative`; `health.teacherCheck: false` switches the check off.',
  },
  E_TIME_LIMIT: {
    exitCode: 2,
    summary: 'The time limit of a job is shorter than its start, one step and the checkpoint.',
    fix: 'Give more with `--slurm time=HH:MM:SS`; `rcm-bridge plan` says what a step takes.',
  },
  E_TORCH_CPU: {
    exitCode: 3,
    summary: '`--torch cpu` was asked for, and no CPU build of torch can be had here.',
    fix: 'Use `--torch auto`, name a wheel with `--torch <pip requirement>`, or configure pip with an index that has it.',
  },
  E_TORCH_DRIFT: {
    exitCode: 5,
    summary: 'The checkpoint was written with another version of torch, so the results would differ.',
    fix: 'Use the torch version that the message names, or add `--allow-drift`.',
  },
  E_TRAINING: {
    exitCode: 1,
    summary: 'Training failed.',
    fix: 'The message and the Python frames say where; logs/sidecar.log has the rest.',
  },
  E_TYPESCRIPT_API: {
    exitCode: 3,
    summary: 'The installed TypeScript does not have the interface that ts-node needs.',
    fix: 'Install typescript 6 beside rcm-bridge, or write the config in YAML.',
  },
  E_USAGE: {
    exitCode: 2,
    summary: 'The command line has an unknown word, an unknown option or a value of the wrong kind.',
    fix: 'See `rcm-bridge <command> --help`.',
  },
  E_WEIGHTS_COMPARE: {
    exitCode: 5,
    summary: 'Converted weights, read back, are not what was to be written.',
    fix: 'Convert again, to another place: the disk may be failing.',
  },
  E_WEIGHTS_EMPTY: {
    exitCode: 5,
    summary: 'A weights file is empty.',
    fix: 'Download or export it again.',
  },
  E_WEIGHTS_HASH: {
    exitCode: 5,
    summary: 'A weights file does not have the sha256 it was published with.',
    fix: 'It was damaged or changed: download it again.',
  },
  E_WEIGHTS_KEYS: {
    exitCode: 5,
    summary: 'A weights file has other tensors than the network.',
    fix: 'Check that `model.name` and `model.overrides` belong to these weights.',
  },
  E_WEIGHTS_LAYOUT: {
    exitCode: 5,
    summary: 'The weights are in no layout this version knows.',
    fix: 'Give a .safetensors, .pth or .pt file, or a folder in the official or the diffusers layout.',
  },
  E_WEIGHTS_MISMATCH: {
    exitCode: 5,
    summary: 'The weights belong to another network: tensors are missing, left over or of another shape.',
    fix: 'Check that `model.name` and `model.overrides` belong to these weights.',
  },
  E_WEIGHTS_NON_FINITE: {
    exitCode: 5,
    summary: 'Weights hold NaN or infinities, or would in the dtype asked for.',
    fix: 'Use weights of a training that did not diverge; convert to bf16 or fp32 instead of fp16.',
  },
  E_WEIGHTS_NOT_FOUND: {
    exitCode: 3,
    summary: 'There are no weights at the path or locator, or a file they consist of is missing.',
    fix: 'A locator is a path, builtin:NAME or hf:OWNER/NAME@REVISION.',
  },
  E_WEIGHTS_SAMPLER: {
    exitCode: 5,
    summary: 'There is no usable sampler.json beside the weights, so nobody knows how to sample them.',
    fix: 'Use an export folder of a run, or copy its sampler.json beside the weights.',
  },
  E_WEIGHTS_SHAPE: {
    exitCode: 5,
    summary: 'A tensor of the weights has another shape than the network expects.',
    fix: 'Check that `model.overrides` belong to these weights.',
  },
  E_WEIGHTS_UNREADABLE: {
    exitCode: 5,
    summary: 'A weights file, or a file that belongs to it, is damaged or cannot be read.',
    fix: 'Download or export it again.',
  },
  E_WEIGHTS_WRITE: {
    exitCode: 3,
    summary: 'Weights cannot be written there.',
    fix: 'Choose another folder.',
  },
} as const satisfies Readonly<Record<`E_${string}`, CodeEntry>>;

export type ErrorCode = keyof typeof errorCodes;

export const isErrorCode = (value: unknown): value is ErrorCode =>
  typeof value === 'string' && Object.hasOwn(errorCodes, value);
