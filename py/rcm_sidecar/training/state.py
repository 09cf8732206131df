"""What of a training job goes into a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rcm_sidecar.checkpoints.training_state import StoredState, TrainingState
from rcm_sidecar.errors import CheckpointError
from rcm_sidecar.training.setup import Trained


def capture(trained: Trained, values: Mapping[str, Any]) -> TrainingState:
    """The state after the last step; the tensors are the live ones, so copy or write them before the next step."""
    trainer = trained.trainer
    counters = {
        "updates": trainer.updates,
        "emaUpdates": [ema.updates for ema in trained.shown.emas],
        "samplesSeen": trainer.step * trained.samples,
        "teacher": trained.teacher_key,
        "data": trained.data.identity,
    }
    return TrainingState(trainer.step, live_tensors(trained), {**counters, **values})


def restore(trained: Trained, state: StoredState) -> None:
    """Read a state into freshly built roles, whatever their layout; all processes call it.

    Raises:
        CheckpointError: E_CHECKPOINT_CORRUPT, when it is the state of something else.
    """
    trainer, values = trained.trainer, state.values
    _check_teacher(trained.teacher_key, values.get("teacher"))
    tensors = live_tensors(trained)
    if tensors.keys() != state.names or values["updates"].keys() != trainer.roles.keys():
        names = ", ".join(sorted(tensors.keys() ^ state.names)) or "its counters"
        hint = "Resume with the method and averages the run began with."
        raise CheckpointError("E_CHECKPOINT_CORRUPT", f"The checkpoint does not fit this run: {names}.", hint)
    state.read(tensors, trained.team)
    for name, role in trainer.roles.items():
        # The tensors are in place already; the counters are taken over.
        role.optimizer.load_state_dict(tensors[f"optimizer-{name}"])
        role.updates = int(values["updates"][name])
    for index, ema in enumerate(trained.shown.emas):
        ema.load(tensors[f"ema-{index}"], int(values["emaUpdates"][index]))
    trainer.step = state.step


def live_tensors(trained: Trained) -> dict[str, Mapping[str, Tensor]]:
    """Everything that training changes, by the name of its folder in a checkpoint."""
    tensors: dict[str, Mapping[str, Tensor]] = {}
    for name, role in trained.trainer.roles.items():
        tensors[name] = role.parameters
        tensors[f"optimizer-{name}"] = role.optimizer.state_dict()
    for index, ema in enumerate(trained.shown.emas):
        tensors[f"ema-{index}"] = ema.weights
    return tensors


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
