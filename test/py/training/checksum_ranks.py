"""What each gloo process does in test_checksums.py. Importable by name, because the processes are spawned."""

from __future__ import annotations

import torch
import torch.distributed as dist
from training.tiny_run import tiny_config
from training.trainer_ranks import LORA, team_of

from rcm_sidecar.distributed.tensors import local
from rcm_sidecar.errors import TrainingError
from rcm_sidecar.training.checksums import ChecksumGuard
from rcm_sidecar.training.setup import set_up_distillation


def set_up(teacher, shard, context, lora=False):
    """A job with checksums after every step, begun."""
    changes = {"teacher.weights": teacher, "schedule.studentEvery": 2, "student.lora": LORA if lora else None}
    trained = set_up_distillation(tiny_config(changes), True, team_of(shard, context))
    guard = ChecksumGuard(trained, 1)
    guard.begin(0)
    return trained, guard


def flip(tensor):
    """One bit of the last process's part."""
    if dist.get_rank() == dist.get_world_size() - 1:
        local(tensor).detach().view(torch.int32).view(-1)[0] ^= 1


def error_of(guard, step):
    try:
        guard.check_if_due(step)
    except TrainingError as error:
        assert error.code == "E_CHECKSUM"
        return error
    raise AssertionError("nobody noticed")


def a_sound_run_passes(teacher, shard, context, lora):
    trained, guard = set_up(teacher, shard, context, lora)
    for step in (1, 2, 3):
        trained.trainer.run_step()
        guard.check_if_due(step)


def a_shard_of_the_teacher_is_named(teacher, shard, context, lora):
    trained, guard = set_up(teacher, shard, context, lora)
    trained.trainer.run_step()
    guard.check_if_due(1)
    flip(trained.teacher.get_parameter("blocks.0.norm3.weight"))
    error = error_of(guard, 2)
    assert error.details == {"ranks": [dist.get_world_size() - 1], "soundStep": 1}, error.details
    assert "blocks.0.norm3.weight" in error.message and "at the start" in error.message


def replicas_are_named(teacher, shard, context, ranks):
    """A weight, a moment, an average and a counter of the last process differ from those of its replicas."""
    trained, guard = set_up(teacher, shard, context)
    role = trained.trainer.roles["critic"]
    names = (
        (role.parameters["blocks.0.self_attn.q.weight"], "critic blocks.0.self_attn.q.weight"),
        (role.optimizer.state_dict()["second/head.head.weight"], "optimizer-critic second/head.head.weight"),
        (trained.shown.emas[0].weights["blocks.0.ffn.0.bias"], "ema-0 blocks.0.ffn.0.bias"),
    )
    for tensor, name in names:
        flip(tensor)
        error = error_of(guard, 1)
        assert error.details["ranks"] == ranks, error.details
        assert name in error.message, error.message
        flip(tensor)
        guard.check_if_due(1)
    if dist.get_rank() == 0:
        role.optimizer.updates += 1
    assert "optimizer-critic updates" in error_of(guard, 1).message
