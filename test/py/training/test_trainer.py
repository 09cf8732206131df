"""The trainer on a toy network: which weights move, counters, micro-batches, non-finite values."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from rcm_sidecar.errors import TrainingError
from rcm_sidecar.methods.loss import Loss
from rcm_sidecar.training.ema import Ema, constant_decay
from rcm_sidecar.training.health import NonFinite, NonFiniteWindow
from rcm_sidecar.training.metric_log import MetricLog
from rcm_sidecar.training.optimizer import AdamW
from rcm_sidecar.training.trainer import Role, Term, Trainer, Work

BATCH = 6


def squares(network: nn.Module, x: Tensor) -> Callable[[slice], Loss]:
    def loss(chosen: slice) -> Loss:
        per_sample = network(x[chosen]).square().sum(dim=1)
        scalars = {"loss": per_sample.detach().double().mean(), "left_out": torch.ones((), dtype=torch.float64)}
        return Loss(per_sample.mean(), per_sample, scalars)

    return loss


class Toy:
    """Student and critic in turn; the critic every second step. `poison` makes the student's input NaN in a step."""

    def __init__(self, micro_batch: int = BATCH, poison: tuple[int, ...] = (), fill: float = float("nan")) -> None:
        source = torch.Generator().manual_seed(0)
        self.networks = {name: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)) for name in ("student", "critic")}
        for network in self.networks.values():
            for parameter in network.parameters():
                parameter.data = torch.randn(parameter.shape, generator=source)
        self.roles = {name: self._role(name) for name in self.networks}
        self.poison, self.fill = poison, fill
        self.live_graphs = 0
        self.trainer = Trainer(self.roles, self.plan, micro_batch=micro_batch)

    def _role(self, name: str) -> Role:
        parameters = dict(self.networks[name].named_parameters())
        optimizer = AdamW(parameters, betas=(0.9, 0.99), epsilon=1e-8, weight_decay=0.1)
        emas = [Ema(parameters, constant_decay(0.5))] if name == "student" else []
        return Role(name, parameters, optimizer, lambda update: 0.1 / (1 + update), None, emas)

    def plan(self, step: int, updates: Mapping[str, int]) -> Work:
        role = "critic" if step % 2 else "student"
        x = torch.randn(BATCH, 3, generator=torch.Generator().manual_seed(step))
        if step in self.poison:
            x[4] = self.fill
        names = ("one", "two") if role == "student" else ("one",)
        loss = squares(self.networks[role], x)
        times = torch.linspace(0, 1, BATCH)
        scalars = {"loss": "loss"}
        terms = tuple(
            Term(name, times, loss, {f"{name}/{key}": value for key, value in scalars.items()}, dropped="left_out")
            for name in names
        )
        return Work(role, role, terms, BATCH, {"x": x})

    def weights(self, name: str) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.networks[name].parameters()]


def changed(before: list[Tensor], after: list[Tensor]) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_step_updates_one_network_and_its_average() -> None:
    toy = Toy()
    student, critic = toy.weights("student"), toy.weights("critic")
    result = toy.trainer.run_step()
    assert (result.step, result.phase) == (1, "student")
    assert changed(student, toy.weights("student")) and not changed(critic, toy.weights("critic"))
    assert toy.roles["student"].emas[0].updates == 1
    average = toy.roles["student"].emas[0].weights["0.weight"].clone()
    student = toy.weights("student")
    toy.trainer.run_step()
    assert changed(critic, toy.weights("critic")) and not changed(student, toy.weights("student"))
    assert toy.trainer.updates == {"student": 1, "critic": 1} and toy.trainer.step == 2
    assert torch.equal(average, toy.roles["student"].emas[0].weights["0.weight"])  # student steps only


def test_both_terms_add_to_one_update() -> None:
    """Two equal terms give twice the gradient of one, in one optimizer step."""
    toy = Toy()
    x = torch.randn(BATCH, 3, generator=torch.Generator().manual_seed(0))
    loss = squares(toy.networks["student"], x)(slice(None)).total
    expected = torch.linalg.vector_norm(
        torch.cat([g.flatten() for g in torch.autograd.grad(2 * loss, list(toy.networks["student"].parameters()))])
    )
    result = toy.trainer.run_step()
    assert result.values["grad_norm/student"] == pytest.approx(expected.item(), rel=1e-5)
    assert result.values["lr/student"] == 0.1
    assert toy.roles["student"].optimizer.updates == 1


def test_micro_batches_give_the_same_update() -> None:
    whole, parts = Toy(), Toy(micro_batch=2)
    for _ in range(3):
        one, many = whole.trainer.run_step(), parts.trainer.run_step()
        assert one.values.keys() == many.values.keys()
        for name, value in one.values.items():
            assert many.values[name] == pytest.approx(value, rel=1e-4), name
    for name in whole.networks:
        for a, b in zip(whole.weights(name), parts.weights(name), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_samples_that_a_loss_left_out_are_counted() -> None:
    """Two terms with three micro-batches each, one sample left out of each."""
    assert Toy(micro_batch=2).trainer.run_step().dropped == 6


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_a_mean_over_no_sample_is_left_out(micro_batch: int) -> None:
    """Scalar "a" has samples in the first micro-batch only, "b" in none."""
    parameter = nn.Parameter(torch.ones(()))

    def loss(chosen: slice) -> Loss:
        here = float(chosen.start == 0)
        scalars = {"a": 7 * here, "a_count": 2 * here, "b": 0.0, "b_count": 0.0}
        doubles = {name: torch.tensor(value, dtype=torch.float64) for name, value in scalars.items()}
        return Loss(parameter.square(), parameter.square()[None], doubles)

    term = Term("gap", torch.zeros(2), loss, {"gap/a": "a", "gap/b": "b"}, {"gap/a": "a_count", "gap/b": "b_count"})
    optimizer = AdamW({"x": parameter}, betas=(0.0, 0.99), epsilon=1e-8, weight_decay=0.0)
    role = Role("student", {"x": parameter}, optimizer, lambda update: 0.1)
    work = Work("student", "student", (term,), 2, {})
    values = Trainer({"student": role}, lambda step, updates: work, micro_batch=micro_batch).run_step().values
    assert values["gap/a"] == 7 and "gap/b" not in values


def test_micro_batches_must_divide() -> None:
    with pytest.raises(TrainingError):
        Toy(micro_batch=4).trainer.run_step()


def test_two_graphs_never_live_at_once() -> None:
    """Each loss is backpropagated before the next one is built."""
    toy = Toy()
    alive: list[int] = []
    count = 0

    class Mark(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            nonlocal count
            count += 1
            alive.append(count)
            return x.clone()

        @staticmethod
        def backward(ctx: object, *gradients: Tensor) -> Tensor:
            nonlocal count
            count -= 1
            return gradients[0]

    toy.networks["student"].register_forward_hook(lambda module, inputs, output: Mark.apply(output))
    toy.trainer.run_step()
    assert alive == [1, 1]


def test_a_non_finite_update_is_skipped_and_everything_else_goes_on() -> None:
    toy = Toy(poison=(2,))
    for _ in range(2):
        toy.trainer.run_step()
    weights, moments = toy.weights("student"), toy.roles["student"].optimizer.state_dict()
    before = {name: value.clone() for name, value in moments.items()}
    average = toy.roles["student"].emas[0].weights["0.weight"].clone()
    result = toy.trainer.run_step()
    assert result.non_finite == NonFinite(step=3, term="one", sample=4, time=pytest.approx(0.8), block="0")
    assert not changed(weights, toy.weights("student"))
    assert all(torch.equal(value, before[name]) for name, value in toy.roles["student"].optimizer.state_dict().items())
    assert toy.trainer.updates == {"student": 2, "critic": 1} and toy.trainer.step == 3
    assert not torch.equal(average, toy.roles["student"].emas[0].weights["0.weight"])  # it moves on, too
    toy.trainer.run_step()
    healthy = toy.trainer.run_step()
    assert healthy.non_finite is None and healthy.values["lr/student"] == pytest.approx(0.1 / 3)
    assert changed(weights, toy.weights("student"))


def test_the_sample_is_found_in_a_later_micro_batch() -> None:
    found = Toy(micro_batch=2, poison=(0,)).trainer.run_step().non_finite
    assert found is not None and found.sample == 4 and "sample 4" in found.message


def test_an_overflowing_gradient_names_a_parameter() -> None:
    found = Toy(poison=(0,), fill=3e18).trainer.run_step().non_finite
    assert found is not None and found.term == "gradient" and found.block == "1.weight"


def event(step: int) -> NonFinite:
    return NonFinite(step, "scm", 3, 0.5, "blocks.1.ffn.0")


def test_a_share_of_skipped_steps_is_tolerated() -> None:
    window = NonFiniteWindow("skip", 0.01, 200)
    window.add(event(10))
    window.add(event(100))
    window.add(event(215))  # the first one has left the window
    with pytest.raises(TrainingError) as caught:
        window.add(event(216))
    error = caught.value
    assert error.code == "E_NON_FINITE"
    assert error.details["sample"] == 3 and error.details["block"] == "blocks.1.ffn.0" and error.details["rank"] == 0
    for part in ("scm", "sample 3", "0.5000", "blocks.1.ffn.0"):
        assert part in error.message


def test_fail_tolerates_none() -> None:
    with pytest.raises(TrainingError):
        NonFiniteWindow("fail", 1.0, 200).add(event(1))


def test_a_phase_is_logged_at_its_first_step_from_each_multiple() -> None:
    log = MetricLog(10)
    phases = ["student" if step % 3 == 0 else "critic" for step in range(1, 33)]
    logged = [(step, phase) for step, phase in enumerate(phases, start=1) if log.is_due(phase, step)]
    assert logged == [
        (1, "critic"), (3, "student"), (10, "critic"), (12, "student"), (20, "critic"), (21, "student"),
        (30, "student"), (31, "critic"),
    ]  # fmt: skip
