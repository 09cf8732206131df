"""The passes that are measured: plain and dual forward, forward and backward, and a whole sCM student update."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from network_bench.cases import Case, Inputs, make_inputs, make_network
from network_bench.stopwatch import Stopwatch
from rcm_sidecar.distributed.fsdp import shard
from rcm_sidecar.dual import Dual
from rcm_sidecar.methods.scm import scm_loss
from rcm_sidecar.networks import Network
from rcm_sidecar.networks.inputs import Checkpointing
from rcm_sidecar.training.optimizer import AdamW

Step = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Parts:
    """A step whose parts are timed."""

    step: Step
    watch: Stopwatch

    def __call__(self) -> object:
        """One pass."""
        return self.step()


GUIDANCE = 5.0
LEARNING_RATE = 1e-6
COMPILE_LIMIT = 64


def plain_forward(case: Case, layers: int | None, device: torch.device, compiled: bool) -> Step:
    """Velocity of a frozen network: what a teacher costs."""
    net, given = _frozen(case, layers, device, compiled)

    @torch.no_grad()
    def step() -> Tensor:
        return cast(Tensor, net(given.x, given.t, given.text))

    return step


def dual_forward(case: Case, layers: int | None, device: torch.device, compiled: bool) -> Step:
    """Velocity and its directional derivative, without gradient."""
    net, given = _frozen(case, layers, device, compiled)

    @torch.no_grad()
    def step() -> Dual:
        return cast(Dual, net(Dual(given.x, given.tx), Dual(given.t, given.tt), given.text))

    return step


def plain_backward(mode: Checkpointing) -> Callable[[Case, int | None, torch.device, bool], Step]:
    """Forward and backward without a tangent."""
    return _backward(mode, tangents=False)


def dual_backward(mode: Checkpointing) -> Callable[[Case, int | None, torch.device, bool], Step]:
    """Dual forward and the backward of its primal."""
    return _backward(mode, tangents=True)


def _backward(mode: Checkpointing, tangents: bool) -> Callable[[Case, int | None, torch.device, bool], Step]:
    def prepare(case: Case, layers: int | None, device: torch.device, compiled: bool) -> Step:
        net, given = _frozen(case, layers, device, compiled)
        net.requires_grad_(True)
        net.activation_checkpointing = mode

        def step() -> None:
            for parameter in net.parameters():
                parameter.grad = None
            x, t = (Dual(given.x, given.tx), Dual(given.t, given.tt)) if tangents else (given.x, given.t)
            out = net(x, t, given.text)
            (out.primal if tangents else out).square().mean().backward()

        return step

    return prepare


def student_update(case: Case, layers: int | None, device: torch.device, compiled: bool) -> Step:
    """Teacher with guidance, dual student, backward, clipping and AdamW: the trainer's student step, timed by parts.

    As in training: the student's parameters are float32 in FSDP units that compute in bf16 (one process here), the
    teacher's are bf16, and the block keeps attention's results (asymmetric checkpointing).
    """
    teacher = make_network(case, layers, device)
    student = make_network(case, layers, device, torch.float32).requires_grad_(True)
    student.activation_checkpointing = "asymmetric"
    given = make_inputs(student, case, device)
    if compiled:
        compile_blocks(teacher)
        compile_blocks(student)
    shard(student, dist.device_mesh.init_device_mesh(device.type, (1,)))
    optimizer = AdamW(dict(student.named_parameters()), betas=(0.0, 0.99), epsilon=1e-8, weight_decay=0.01)

    watch = Stopwatch(device)
    timed_teacher, timed_student = _timed(watch, "teacher", teacher), _timed(watch, "dual forward", student)

    def step() -> None:
        watch.start_pass()
        with watch.part("optimizer"):
            optimizer.zero_grad()
        loss = scm_loss(
            timed_student,
            timed_teacher,
            given.x,
            given.tx,
            given.u,
            text=given.text,
            negative=given.negative,
            guidance=GUIDANCE,
            time_scale=student.spec.time_scale,
        )
        with watch.part("backward"):
            loss.total.backward()
        with watch.part("optimizer"):
            norm = optimizer.gradient_norm()
            optimizer.clip(1.0, norm)
            optimizer.step(LEARNING_RATE)

    return Parts(step, watch)


def _timed(watch: Stopwatch, part: str, net: Network) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        with watch.part(part):
            return net(*args, **options)

    return call


PASSES: dict[str, Callable[[Case, int | None, torch.device, bool], Step]] = {
    "plain": plain_forward,
    "dual": dual_forward,
    **{f"plain+backward {mode}": plain_backward(mode) for mode in get_args(Checkpointing)},
    **{f"dual+backward {mode}": dual_backward(mode) for mode in get_args(Checkpointing)},
    "update": student_update,
}


KEPT_AND_COMPILED = "not offered: a compiled body saves other tensors in its recomputation than in its dual forward"
NOT_COMPILED = {name: KEPT_AND_COMPILED for name in PASSES if name.endswith(("asymmetric", "selective", "update"))}
"""Passes that keep results do not go with compile (test/py/dual/test_fused_compile.py)."""


def compile_blocks(net: Network) -> None:
    """Compile the body of each block: inside the checkpoint, before sharding (design.md section 2)."""
    torch._dynamo.config.cache_size_limit = COMPILE_LIMIT  # a limit that is hit runs eager without saying so
    for block in net.blocks:
        module = cast(Any, block)
        module._body = torch.compile(module._body, dynamic=False)


@contextmanager
def one_process(device: torch.device) -> Iterator[None]:
    """A process group of one, which FSDP needs."""
    store = dist.HashStore()
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def first_step_seconds(step: Step, device: torch.device) -> float:
    """Wall time of the first call, compilation included."""
    begin = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _frozen(case: Case, layers: int | None, device: torch.device, compiled: bool) -> tuple[Network, Inputs]:
    net = make_network(case, layers, device)
    if compiled:
        compile_blocks(net)
    return net, make_inputs(net, case, device)
