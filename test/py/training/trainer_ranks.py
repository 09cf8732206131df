"""What each gloo process does in test_many_ranks.py. Importable by name, because the processes are spawned."""

from __future__ import annotations

import functools
import socket

import torch
import torch.distributed as dist
from distributed.context_ranks import CountCollectives
from training.tiny_run import COSMOS, tiny_config, without_times

from rcm_sidecar.data.training_data import TensorData
from rcm_sidecar.distributed.job_team import ALONE, JobTeam
from rcm_sidecar.distributed.mesh import build_mesh, parallel_sizes
from rcm_sidecar.distributed.tensors import fill, local, whole
from rcm_sidecar.error_report import error_body
from rcm_sidecar.errors import HostError
from rcm_sidecar.link import Cancel, JobCancelled
from rcm_sidecar.training import setup

STEPS = 3
TOLERANCE = 1e-10
LORA = {"rank": 2, "alpha": 4.0, "targets": ["attention", "ffn"]}


@functools.cache
def double_precision():
    """Everything that `setup` loads becomes float64; LoRA's zeros become numbers, so that every gradient is seen.

    Latents are cut to 6 x 6, which makes 9 tokens: neither 2 nor 4 processes divide them, and one of 4 gets none.
    """
    build_frozen, load_table = setup.build_frozen, setup.load_table
    open_data, start_networks = setup.open_training_data, setup.start_networks

    def randomised(config, teacher, *arguments):
        learners = start_networks(config, teacher, *arguments)
        source = torch.Generator().manual_seed(4)
        for name, parameter in teacher.named_parameters():
            if name.endswith(".up"):
                fill(parameter, 0.1 * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
        return learners

    def data(config, cache_dir=None):
        held = open_data(config)
        batch = held.batch(0, held.size, 0)
        return TensorData(batch.latents[..., :6, :6].double(), batch.condition)

    setup.build_frozen = lambda *arguments: build_frozen(*arguments).double()
    setup.load_table = lambda *arguments: load_table(*arguments).double()
    setup.open_training_data, setup.start_networks = data, randomised


def run(changes, team):
    """Metrics of every step, then all weights, moments and averages."""
    trained = setup.set_up_distillation(tiny_config(changes), changes.get("student.lora") is None, team)
    steps = []
    for _ in range(STEPS):
        result = trained.trainer.run_step()
        assert result.non_finite is None and result.dropped == 0
        steps.append((result.phase, without_times(result.values)))
    state = {}
    for name, role in trained.trainer.roles.items():
        state |= {f"{name}/{key}": whole(value.detach()) for key, value in role.parameters.items()}
        state |= {f"{name}/{key}": whole(value) for key, value in role.optimizer.state_dict().items()}
    averages = {key: whole(value) for key, value in trained.shown.emas[0].weights.items()}
    return steps, state, averages, trained


def team_of(shard, context):
    sizes = parallel_sizes(dist.get_world_size(), shard=shard, context=context)
    return JobTeam(dist.get_rank(), sizes, torch.device("cpu"), build_mesh("cpu", sizes))


@functools.cache
def one_process(*case):
    """What `run` gives for a case of `changes_of`, without other processes; once for all layouts."""
    return run(changes_of(*case), ALONE)[:3]


def changes_of(family, teacher, method, lora):
    return {
        **(COSMOS if family == "cosmos" else {}),
        "teacher.weights": teacher,
        "method": method,
        "schedule.microBatchSize": 2,
        "schedule.studentEvery": 2,
        "student.lora": LORA if lora else None,
        "student.optimizer.clipNorm": 0.5,
        "losses.scm.tangentWarmupUpdates": 0,
        # Gradients that are zero but for rounding must not become updates of full size.
        "student.optimizer.epsilon": 1e-3,
        "critic.optimizer.epsilon": 1e-3,
    }


def equals_one_process(family, teacher, method, lora, shard, context, kind="auto"):
    double_precision()
    case = (family, teacher, method, lora)
    wanted_steps, wanted, wanted_averages = one_process(*case)
    parallel = {"compute.parallel.contextKind": kind}
    steps, state, averages, trained = run({**changes_of(*case), **parallel}, team_of(shard, context))
    for (phase, values), (wanted_phase, wanted_values) in zip(steps, wanted_steps, strict=True):
        assert phase == wanted_phase and values.keys() == wanted_values.keys()
        for name, value in wanted_values.items():
            assert abs(values[name] - value) <= TOLERANCE * max(1e-3, abs(value)), (name, values[name], value)
    assert state.keys() == wanted.keys()
    for name, value in wanted.items():
        assert distance(state[name], value) <= TOLERANCE, (name, distance(state[name], value))
    for name, value in wanted_averages.items():
        assert distance(averages[name], value) <= 1e-6, name
    parts = shard * context
    for name, value in trained.shown.parameters.items():
        assert len(local(value)) <= -(-len(value) // parts), f"{name} is not sharded"
        assert local(trained.shown.emas[0].weights[name]).shape == local(value).shape


def replicas_are_summed_once_a_step(teacher):
    """Two micro-batches of two losses: gradients of replicas are summed after the last backward only."""
    changes = {
        "teacher.weights": teacher,
        "schedule.microBatchSize": 2,
        "losses.scm.tangentWarmupUpdates": 0,
        "schedule.studentEvery": 1,
    }
    trained = setup.set_up_distillation(tiny_config(changes), True, team_of(1, 1))
    trained.trainer.run_step()
    with CountCollectives() as counted:
        result = trained.trainer.run_step()
    assert result.phase == "student" and "dmd/loss" in result.values
    assert counted.counts["allreduce_"] == units_of(trained.learner.network) + 1, counted.counts


def units_of(network):
    """Groups of parameters that are gathered together: every block, the wide parts as one, the rest."""
    return len(network.blocks) + 2


def pretraining_equals_one_process():
    """The label table is sharded, too, and its gradient passes through the network."""
    changes = {"schedule.microBatchSize": 2, "pretrain.optimizer.epsilon": 1e-3}

    def run_steps(team):
        trained = setup.set_up_pretraining(tiny_config(changes), team)
        losses = [trained.trainer.run_step().values["flow/loss"] for _ in range(STEPS)]
        return losses, {name: whole(value.detach()) for name, value in trained.shown.parameters.items()}, trained

    wanted_losses, wanted, _ = run_steps(ALONE)
    losses, weights, trained = run_steps(team_of(2, 1))
    table = trained.shown.parameters["conditioner.table"]
    assert len(local(table)) < len(table)
    assert max(abs(a - b) for a, b in zip(losses, wanted_losses, strict=True)) < 1e-5
    for name, value in wanted.items():
        assert distance(weights[name], value) < 1e-5, name


def distance(one, other):
    return float((one.double() - other.double()).norm() / other.double().norm().clamp(min=1e-6))


def every_rank_finds_the_bad_sample(teacher):
    """A sample of the last process only: all skip the update, and all say whose sample it was."""
    team = team_of(2, 1)
    config = tiny_config({"teacher.weights": teacher, "method": "scm"})
    original = setup.open_training_data
    setup.open_training_data = lambda config, cache_dir: Poisoned(original(config), sample=6)
    trained = setup.set_up_distillation(config, False, team)
    setup.open_training_data = original
    before = {name: whole(value.detach()).clone() for name, value in trained.shown.parameters.items()}
    result = trained.trainer.run_step()
    found = result.non_finite
    assert found is not None and (found.term, found.sample, found.rank) == ("scm", 6, 1), found
    for name, value in trained.shown.parameters.items():
        assert torch.equal(whole(value.detach()), before[name]), name


class Poisoned:
    """A data set with a sample that is not finite, at a place of the shuffled stream."""

    def __init__(self, data, sample):
        self.size, self.latent_shape, self.identity = data.size, data.latent_shape, data.identity
        self._data, self._sample = data, sample

    def batch(self, start, count, seed):
        batch = self._data.batch(start, count, seed)
        if start <= self._sample < start + count:
            batch.latents[self._sample - start] = float("nan")
        return batch


def talk():
    """Values of every kind go round; what one process does alone stops all of them together."""
    team = team_of(2, 1)
    assert team.tell({"a": [1, None, "x"]} if team.leads else "not looked at") == {"a": [1, None, "x"]}
    assert team.gather(["r" * (1 + 5 * team.rank), team.rank]) == [["r", 0], ["rrrrrr", 1]]
    assert team.sum(torch.tensor([1.0, team.rank], dtype=torch.float64)) == [2.0, 1.0]
    assert team.alone(lambda: "done") == ("done" if team.leads else None)

    def cancelled():
        raise JobCancelled(Cancel(checkpoint=True))

    try:
        team.alone(cancelled)
    except JobCancelled as stopped:
        assert stopped.cancel.checkpoint
    else:
        raise AssertionError("the others went on")
    an_error_is_raised_by_all(team)


def an_error_is_raised_by_all(team):
    """Of its kind, with its code and fix; elsewhere it names the process and has the frames from there."""

    def full():
        if team.rank == 1:
            raise HostError("E_DISK_FULL", "No space.", "Free some.", {"bytes": 3})
        return "not full"

    for work, kind, words in ((full, HostError, "No space."), (lambda: 1 // (1 - team.rank), None, "division")):
        try:
            team.together(work)
        except Exception as error:
            caught = error
        else:
            raise AssertionError("an error was lost")
        body = error_body(caught)
        assert body.chain[0].frames[-1].function in ("full", "<lambda>"), body.chain
        assert words in caught.args[0] and (kind is None or type(caught) is kind)
        if team.rank == 1:
            assert kind is not None or type(caught) is ZeroDivisionError
            continue
        assert caught.args[0].startswith(f"Rank 1 on {socket.gethostname()}: ") and caught.details["rank"] == 1
        if kind is not None:
            assert (caught.code, caught.hint, caught.details["bytes"]) == ("E_DISK_FULL", "Free some.", 3)
