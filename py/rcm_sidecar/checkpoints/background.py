"""Checkpoints written while training goes on: a step waits for a copy to the CPU, a thread does the rest.

At most one is being written: the next one, and the end of a run, wait for it. What goes wrong in the thread is raised
where training next asks.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rcm_sidecar.checkpoints.sharded_tensors import local_part
from rcm_sidecar.checkpoints.training_state import (
    TrainingState,
    WrittenCheckpoint,
    prune,
    verify_written,
    write_checkpoint,
)
from rcm_sidecar.config import Checkpoints
from rcm_sidecar.distributed.job_team import ALONE, JobTeam
from rcm_sidecar.errors import SidecarError
from rcm_sidecar.training.determinism import Environment

Written = Callable[[WrittenCheckpoint], None]

ABANDON_SECONDS = 20.0
"""How long a failed run of several processes waits for its checkpoint: the others may be gone."""


class CheckpointWriter:
    """Writes and prunes the checkpoints of a run. Every process has one and calls it at the same steps.

    Args:
        root: The folder `checkpoints` of the run.
        settings: The config block; `async` decides whether `write` returns before the files are there.
        environment: Stored in checkpoints.
        config_hash: Stored in checkpoints.
        verify: Read each checkpoint back.
        team: The processes that write.
    """

    def __init__(
        self,
        root: Path,
        settings: Checkpoints,
        environment: Environment,
        config_hash: str,
        *,
        verify: bool,
        team: JobTeam = ALONE,
    ) -> None:
        self._root, self._settings, self._verify = root, settings, verify
        self._environment, self._config_hash = environment, config_hash
        self._team = team.for_a_thread() if settings.async_ else team
        self._staged: dict[tuple[str, str], Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def write(self, state: TrainingState, written: Written) -> None:
        """Take a copy of a state and write it; `written` is called in the thread once it is on disk.

        Raises:
            HostError: E_DISK_FULL, of the checkpoint before or, unless `async`, of this one.
        """
        self.finish()
        if not self._settings.async_:
            self._write(state, written)
            return
        staged = self._stage(state)
        self._thread = threading.Thread(target=self._run, args=(staged, written), name="checkpoint", daemon=True)
        self._thread.start()

    def raise_if_failed(self) -> None:
        """Raise what went wrong in the thread, without waiting for it; errors as `write`."""
        if self._thread is not None and not self._thread.is_alive():
            self.finish()

    def finish(self) -> None:
        """Wait until the checkpoint is on disk; errors as `write`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def abandon(self, error: BaseException) -> BaseException:
        """The run has failed: let the checkpoint be finished.

        Returns:
            What the run failed of: `error`, unless the checkpoint failed first, of which the other processes have
            learnt at once; their end shows here as a broken connection.
        """
        if self._thread is not None:
            self._thread.join(None if self._team.single else ABANDON_SECONDS)
        is_first = isinstance(self._error, SidecarError) and isinstance(error, (RuntimeError, OSError))
        return self._error if is_first and self._error is not None else error

    def _run(self, state: TrainingState, written: Written) -> None:
        try:
            self._write(state, written)
        except BaseException as error:
            self._error = error

    def _write(self, state: TrainingState, written: Written) -> None:
        result = write_checkpoint(self._root, state, self._environment, self._config_hash, self._team)
        if self._verify:
            verify_written(result.folder, state, self._team)
        if self._team.leads:
            prune(self._root, state.step, self._settings.keep_last, self._settings.keep_every_steps)
        written(result)

    def _stage(self, state: TrainingState) -> TrainingState:
        """The state with copies of its tensors in CPU memory, which is kept for the next checkpoint."""
        tensors = {
            folder: {name: self._copy((folder, name), tensor) for name, tensor in named.items()}
            for folder, named in state.tensors.items()
        }
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # copies into pinned memory do not wait
        return dataclasses.replace(state, tensors=tensors)

    def _copy(self, key: tuple[str, str], tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        copy = self._staged.get(key)
        if copy is None:
            copy = torch.empty_like(
                tensor, device="cpu", memory_format=torch.contiguous_format, pin_memory=tensor.is_cuda
            )
            self._staged[key] = copy
        local_part(copy).copy_(local_part(tensor), non_blocking=True)
        return copy
