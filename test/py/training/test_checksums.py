"""A weight that changes by itself stops the run, and the process that holds it is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from distributed.spawn import run_on_ranks
from training import checksum_ranks
from training.tiny_run import run, start

from rcm_sidecar.errors import TrainingError
from rcm_sidecar.link import Recorded, RecordingLink
from rcm_sidecar.training import loop
from rcm_sidecar.training.checksums import _odd, checksum


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 8, 101])
def test_every_bit_counts_and_order_does_not(dtype, size):
    values = torch.randn(size, generator=torch.Generator().manual_seed(1)).mul(100).to(dtype)
    before = int(checksum(values))
    if dtype.itemsize == 8:
        assert int(checksum(values.flip(0))) == before
    bits = values.view(torch.uint8)
    for place in {0, len(bits) // 2, len(bits) - 1} if size else ():
        for bit in (0, 7):
            bits[place] ^= 1 << bit
            assert int(checksum(values)) != before
            bits[place] ^= 1 << bit
    assert int(checksum(values)) == before


def test_views_have_the_checksum_of_their_values():
    values = torch.randn(9, 7)
    for view in (values[1:], values.T, values[:, 3], values[0, 0]):
        assert int(checksum(view)) == int(checksum(view.clone()))


@pytest.mark.parametrize(
    ("values", "odd"),
    [
        ({0: 5, 1: 5}, []),
        ({0: 5, 1: 6}, [0, 1]),
        ({0: 5, 2: 5, 4: 6}, [4]),
        ({0: 5, 2: 5, 4: 6, 6: 6}, [0, 2, 4, 6]),
    ],
)
def test_the_minority_is_named_or_all(values, odd):
    assert list(_odd(values)) == odd


@pytest.mark.parametrize("lora", [False, True])
def test_one_process_notices_its_teacher(lora, monkeypatch, tiny_teacher: Path, tmp_path: Path) -> None:
    """One bit of the teacher, or of the base of a LoRA, after step 5: the run ends at step 6, before its checkpoint."""
    loops = []
    real = loop.TrainingLoop.run
    monkeypatch.setattr(loop.TrainingLoop, "run", lambda self: loops.append(self) or real(self))

    def strike(record: Recorded) -> None:
        if record.type == "progress" and record.body.step == 5:
            weight = loops[0].trained.teacher.blocks[0].norm3.weight
            weight.data.view(torch.int32)[3] ^= 1

    changes = {
        "teacher.weights": str(tiny_teacher),
        "health.checksumEverySteps": 3,
        "checkpoints.everySteps": 3,
        "student.lora": {"rank": 2, "alpha": 4.0, "targets": ["attention"]} if lora else None,
    }
    with pytest.raises(TrainingError) as caught:
        run(start(tmp_path, changes), RecordingLink(strike))
    error = caught.value
    assert error.code == "E_CHECKSUM" and error.details == {"ranks": [0], "soundStep": 3}
    assert "Step 6" in error.message and "blocks.0.norm3.weight" in error.message
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000003"]


def test_a_sound_run_is_not_stopped(tiny_teacher: Path, tmp_path: Path) -> None:
    changes = {"teacher.weights": str(tiny_teacher), "health.checksumEverySteps": 1, "schedule.steps": 3}
    assert run(start(tmp_path, changes))[0].state == "succeeded"


def test_two_processes(tiny_teacher: Path, tmp_path: Path) -> None:
    teacher = str(tiny_teacher)
    run_on_ranks(
        2,
        tmp_path,
        checksum_ranks,
        ("a_sound_run_passes", teacher, 1, 2, True),
        ("a_shard_of_the_teacher_is_named", teacher, 2, 1, False),
        ("replicas_are_named", teacher, 1, 1, [0, 1]),
    )


@pytest.mark.long
def test_two_processes_in_other_layouts(tiny_teacher: Path, tmp_path: Path) -> None:
    teacher = str(tiny_teacher)
    run_on_ranks(
        2,
        tmp_path,
        checksum_ranks,
        ("a_sound_run_passes", teacher, 1, 1, False),
        ("a_shard_of_the_teacher_is_named", teacher, 2, 1, True),
    )


@pytest.mark.long
def test_four_processes(tiny_teacher: Path, tmp_path: Path) -> None:
    teacher = str(tiny_teacher)
    run_on_ranks(
        4,
        tmp_path,
        checksum_ranks,
        ("a_sound_run_passes", teacher, 2, 1, False),
        ("replicas_are_named", teacher, 2, 1, [1, 3]),
        ("replicas_are_named", teacher, 1, 1, [3]),
    )
