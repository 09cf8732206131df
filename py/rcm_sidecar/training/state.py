"""What of a training job goes into a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rcm_sidecar.checkpoints.training_state import TrainingState
from rcm_sidecar.distributed.tensors import copy_whole
from rcm_sidecar.errors import CheckpointError
from rcm_sidecar.training.setup import Trained


def capture(trained: Trained, values: Mapping[str, Any]) -> TrainingState:
    """The state after the last step; the tensors are the live ones, so write them before the next step."""
    trainer = trained.trainer
    tensors: dict[str, Mapping[str, Tensor]] = {}
    for name, role in trainer.roles.items():
        tensors[name] = role.parameters
        tensors[f"optimizer-{name}"] = role.optimizer.state_dict()
    for index, ema in enumerate(trained.shown.emas):
        tensors[f"ema-{index}"] = ema.weights
    counters = {
        "updates": trainer.updates,
        "emaUpdates": [ema.updates for ema in trained.shown.emas],
        "samplesSeen": trainer.step * trained.samples,
        "teacher": trained.teacher_key,
    }
    return TrainingState(trainer.step, tensors, {**counters, **values})


def restore(trained: Trained, state: TrainingState) -> None:
    """Put a state back into freshly built roles.

    Raises:
        CheckpointError: E_CHECKPOINT_CORRUPT, when it is the state of something else.
    """
    trainer, values = trained.trainer, state.values
    _check_teacher(trained.teacher_key, values.get("teacher"))
    wanted = {
        *trainer.roles,
        *(f"optimizer-{name}" for name in trainer.roles),
        *(f"ema-{index}" for index in range(len(trained.shown.emas))),
    }
    if wanted != state.tensors.keys() or values["updates"].keys() != trainer.roles.keys():
        names = ", ".join(sorted(wanted ^ state.tensors.keys())) or "its counters"
        hint = "Resume with the method and averages the run began with."
        raise CheckpointError("E_CHECKPOINT_CORRUPT", f"The checkpoint does not fit this run: {names}.", hint)
    for name, role in trainer.roles.items():
        _copy(name, role.parameters, state.tensors[name])
        role.optimizer.load_state_dict(state.tensors[f"optimizer-{name}"])
        role.updates = int(values["updates"][name])
    for index, ema in enumerate(trained.shown.emas):
        ema.load(state.tensors[f"ema-{index}"], int(values["emaUpdates"][index]))
    trainer.step = state.step


def _check_teacher(here: str, there: str | None) -> None:
    """The adapters of a LoRA are worth nothing on another base, and no run should change its teacher halfway."""
    if there is None or there == here:
        return
    raise CheckpointError(
        "E_CHECKPOINT_CORRUPT",
        f"The teacher's weights have changed since the checkpoint was written: {here[:12]}, not {there[:12]}.",
        "Put the files at teacher.weights back as they were, or start a new run.",
        {"checkpoint": there, "here": here},
    )


@torch.no_grad()
def _copy(role: str, targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    wrong = sorted(set(targets) ^ set(values))
    wrong = wrong or [name for name, target in targets.items() if target.shape != values[name].shape]
    if wrong:
        raise CheckpointError(
            "E_CHECKPOINT_CORRUPT",
            f"The checkpoint's {role} does not fit: {', '.join(wrong[:3])}.",
            "Resume with the network the run began with.",
        )
    for name, target in targets.items():
        copy_whole(target, values[name])
