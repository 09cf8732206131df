"""Named tensors in a folder of safetensors files, written and read by torch.distributed.checkpoint.

Every process writes the shards it holds, replicated tensors are written once, and any number of processes with any
layout reads them back. docs/checkpoints.md describes the files and what torch 2.11 does not do. torch's package is
imported where it is used: that takes half a second, which jobs without checkpoints need not wait for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from traceback import StackSummary
from typing import NoReturn

import torch
from torch import Tensor

from rcm_sidecar.distributed.job_team import JobTeam
from rcm_sidecar.errors import SidecarError
from rcm_sidecar.files import write_error

Layout = tuple[tuple[int, ...], torch.dtype]
"""Shape of the whole tensor and dtype."""

_FILE_BYTES = 2**28
"""Most that one process puts into one file. The writer builds a file in memory, holding Python's lock for a moment."""

# One process without a process group is a layout like any other here. Changing the filters for one call only would not
# be safe in a thread.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


def save_tensors(folder: Path, tensors: Mapping[str, Tensor], team: JobTeam) -> None:
    """Write tensors into `folder`, which is made; all processes of the team call it with the same names.

    Args:
        folder: Empty or missing.
        tensors: DTensors of a mesh of the team's processes, or plain tensors that are equal on all of them.
        team: Who writes.

    Raises:
        HostError: A file could not be written, on any process; all raise it.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(
        str(folder), fqn_to_index_mapping=_file_numbers(tensors, team.size), save_distributed=True
    )
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    state = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        save(state, storage_writer=writer, planner=planner, process_group=team.group, no_dist=team.single)
    except CheckpointException as error:
        _raise_failures(error.failures, team, partial(write_error, folder))


def own_files(folder: Path, team: JobTeam) -> list[Path]:
    """The files of `folder` that this process has written."""
    return sorted(folder.glob(f"shard-{team.rank + 1:05d}-*.safetensors"))


def stored_layout(folder: Path) -> dict[str, Layout]:
    """Names, shapes and dtypes of what `save_tensors` has written, from the headers of all files.

    Raises:
        Exception: Whatever the library says of a damaged file.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {
        name: (tuple(found.size), found.properties.dtype)
        for name, found in stored.items()
        if isinstance(found, TensorStorageMetadata)
    }


def layout_of(tensors: Mapping[str, Tensor]) -> dict[str, Layout]:
    """What `stored_layout` finds once these tensors are written."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def read_tensors(
    folder: Path, targets: Mapping[str, Tensor], team: JobTeam, unreadable: Callable[[], SidecarError]
) -> None:
    """Fill the targets, plain tensors or DTensors of any mesh, in place; all processes of the team call it.

    The layouts must be those of `stored_layout`: torch casts other dtypes without a word.

    Raises:
        SidecarError: What `unreadable` makes, on all processes, when one cannot read a file.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    state = {name: tensor.detach() for name, tensor in targets.items()}
    try:
        load(state, storage_reader=reader, planner=planner, process_group=team.group, no_dist=team.single)
    except CheckpointException as error:
        _raise_failures(error.failures, team, lambda _: unreadable())


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, without a graph."""
    local: Callable[[], Tensor] | None = getattr(tensor.detach(), "to_local", None)  # a DTensor
    return tensor.detach() if local is None else local()


def _file_numbers(tensors: Mapping[str, Tensor], processes: int) -> dict[str, int]:
    """Which file of a process a tensor goes into, from 1."""
    numbers, number, filled = {}, 1, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if filled and filled + size > _FILE_BYTES * processes:
            number, filled = number + 1, 0
        filled += size
        numbers[name] = number
    return numbers


def _raise_failures(
    failures: Mapping[int, tuple[BaseException, StackSummary]],
    team: JobTeam,
    refused: Callable[[OSError], SidecarError],
) -> NoReturn:
    """Every process raises what went wrong on the first that failed: torch's own exception is not even an Exception."""

    def own() -> None:
        error = failures[team.rank][0] if team.rank in failures else None
        if isinstance(error, OSError):
            raise refused(error) from error
        if error is not None:
            raise error

    team.together(own)
    raise AssertionError("nobody failed")
