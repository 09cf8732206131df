"""What each gloo process does in test_tangent_gate.py. Importable by name, because the processes are spawned."""

from __future__ import annotations

import torch
import torch.distributed as dist
from training.tiny_run import tiny_config, without_times
from training.trainer_ranks import LORA, team_of

from rcm_sidecar.data import Batch
from rcm_sidecar.distributed.tensors import local
from rcm_sidecar.dual import Dual, ops
from rcm_sidecar.errors import TrainingError, WeightsError
from rcm_sidecar.link import RecordingLink
from rcm_sidecar.training.setup import set_up_distillation
from rcm_sidecar.training.tangent_gate import report_tangent
from rcm_sidecar.training.teacher_check import check_roles_equal


def set_up(teacher, precision, lora, shard, context, kind):
    """With the check that teacher, student and critic are equal, as before a first step."""
    changes = {
        "teacher.weights": teacher,
        "student.lora": LORA if lora else None,
        "compute.precision.compute": precision,
        "compute.activationCheckpointing": "asymmetric",
        "compute.parallel.contextKind": kind,
    }
    config = tiny_config(changes)
    return config, set_up_distillation(config, True, team_of(shard, context))


def the_gate_passes(teacher, precision, lora, shard, context, kind):
    config, trained = set_up(teacher, precision, lora, shard, context, kind)
    link = RecordingLink()
    report_tangent(config, trained, link)
    (record,) = link.of_type("log")
    assert len(record["fields"]["errors"]) == 3
    gradients = [p.grad for role in trained.trainer.roles.values() for p in role.parameters.values()]
    assert all(gradient is None for gradient in gradients)
    result = trained.trainer.run_step()
    assert result.non_finite is None


def the_gate_leaves_no_trace(teacher, shard, context):
    """A step after the gate is bit for bit the step without it."""
    states = []
    for gate in (False, True):
        config, trained = set_up(teacher, "bf16", False, shard, context, "auto")
        if gate:
            report_tangent(config, trained, RecordingLink())
        values = [without_times(trained.trainer.run_step().values) for _ in range(2)]
        states.append((values, [local(p).detach().clone() for p in trained.shown.parameters.values()]))
    (values, weights), (others, other_weights) = states
    assert values == others
    assert all(torch.equal(a, b) for a, b in zip(weights, other_weights, strict=True))


def a_process_with_a_wrong_rule_is_named(teacher):
    """Its own kernels are wrong; all stop, in the same place."""
    config, trained = set_up(teacher, "fp32", False, 2, 1, "auto")
    real = ops.rope

    def without(x, *arguments, **options):
        return real(Dual(x.primal, None) if isinstance(x, Dual) else x, *arguments, **options)

    if dist.get_rank() == 1:
        ops.rope = without
    try:
        report_tangent(config, trained, RecordingLink())
    except TrainingError as error:
        assert error.code == "E_TANGENT_GATE" and "on rank 1 is off" in error.message, error.message
        assert error.details["rank"] == 1
    else:
        raise AssertionError("it passed")
    finally:
        ops.rope = real


def a_role_that_starts_elsewhere_is_found(teacher, precision, lora, shard):
    """One number of the student on the last process: of a shard, which all see, or of a replica, which it sees."""
    config, trained = set_up(teacher, precision, lora, shard, 1, "auto")
    last = dist.get_rank() == dist.get_world_size() - 1
    name = "blocks.0.self_attn.q.lora.student.up" if lora else "blocks.0.self_attn.q.weight"
    if last:
        local(trained.learner.parameters[name]).detach().view(-1)[0] += 1.0
    drawn = trained.data.batch(0, 4, config.seed)
    arguments = (Batch(drawn.latents, drawn.condition), trained.condition, trained.teacher.spec.time_scale)
    found = False
    try:
        check_roles_equal(trained.teacher, {"student": trained.learner.velocity}, *arguments)
    except WeightsError as error:
        assert error.code == "E_TEACHER_CHECK" and "the student starts as its copy" in error.message
        found = True
    assert found == (last or shard > 1)
