"""What each gloo process does in test_context.py. Importable by name, because the processes are spawned."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from distributed.two_ranks import (
    BATCH,
    FAMILIES,
    TOLERANCE,
    Setting,
    assert_equal,
    batch_of,
    time_stays_wide,
    train,
)
from networks.checks import CountOps, assert_equal_gradients, gradients, loss_of
from networks.small_wan import relative

from rcm_sidecar.distributed.context_parallel import ContextGroup, TokenShare
from rcm_sidecar.distributed.fsdp import HALF_PRECISION, STORED_PRECISION, shard
from rcm_sidecar.distributed.mesh import build_mesh, own_samples, parallel_sizes
from rcm_sidecar.dual import Dual
from rcm_sidecar.networks import TextCache
from rcm_sidecar.step_clock import StepClock, current_clock

# Latents of 12 tokens, which 2 and 4 divide; of 15, which they do not; of 9: the last of 4 processes gets none.
EVEN, UNEVEN, SCARCE = (1, 4, 12), (1, 6, 10), (1, 6, 6)
# 3 heads divide by no number of processes here.
HEADS = {"ulysses": {"num_heads": 4}, "ring": {"num_heads": 3, "dim": 24}}
# Collectives by their dispatched names.
ALL_TO_ALL, ALL_GATHER, SEND, RECEIVE = "alltoall_base_", "_allgather_base_", "send", "recv_"


def networks(family, kind, mode="none"):
    """The same network twice: for one process, and for all together."""
    alone = FAMILIES[family].small_network(out_dim=3, **HEADS[kind])
    together = copy.deepcopy(alone)
    together.context = ContextGroup(dist.group.WORLD, kind)
    together.activation_checkpointing = mode
    return alone, together


def inputs(family, latent):
    """Dual x and t, text; the batch is 2 samples."""
    generator = torch.Generator().manual_seed(1)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, tx, text = randn(2, 3, *latent), randn(2, 3, *latent), randn(2, 5, 10)
    _, t, _, _, tt = FAMILIES[family].small_inputs()
    return Dual(x, tx), Dual(t, tt), text


def average_gradients(net):
    """As FSDP2 does: the mean over all processes."""
    for parameter in net.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()


def same_everywhere(x):
    everyones = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(everyones, x.contiguous())
    return all(torch.equal(other, x) for other in everyones)


def two_in_a_row(net, x, t, text):
    """The velocity's velocity, so that a gradient passes through an input; both Duals and that input's gradient."""
    leaf = x.primal.clone().requires_grad_()
    first = net(Dual(leaf, x.tangent), t, text)
    second = net(first, t, text)
    loss_of(second.primal).backward()
    return first, second, leaf.grad


def network_equals_one_process(family, kind, mode, latent):
    alone, together = networks(family, kind, mode)
    *wanted, wanted_gradient = two_in_a_row(alone, *inputs(family, latent))
    *actual, actual_gradient = two_in_a_row(together, *inputs(family, latent))
    average_gradients(together)
    for dual, other in zip(wanted, actual, strict=True):
        assert not other.tangent.requires_grad
        for part, shared in zip(dual, other, strict=True):
            assert part.norm() > 0 and relative(shared, part) < TOLERANCE
            assert same_everywhere(shared.detach())
    assert relative(actual_gradient, wanted_gradient) < TOLERANCE
    assert_equal_gradients(gradients(together), gradients(alone))


def plain_passes_equal_one_process(family, kind, latent):
    """Tensors, Duals with a known zero tangent, and cached text keys, without gradients."""
    alone, together = networks(family, kind)
    x, t, text = inputs(family, latent)
    with torch.no_grad():
        wanted, cache = alone(x.primal, t.primal, text), TextCache()
        for _ in range(2):
            assert relative(together(x.primal, t.primal, text, kv_cache=cache), wanted) < TOLERANCE
        for dual in ((Dual(x.primal, None), t), (x, Dual(t.primal, None))):
            assert relative(together(*dual, text).tangent, alone(*dual, text).tangent) < TOLERANCE
        unmoved = together(Dual(x.primal, None), Dual(t.primal, None), text)
        assert unmoved.tangent is None and relative(unmoved.primal, wanted) < TOLERANCE


def step_equals_one_process(family, lora, step, kind, mode, latent, shards, contexts):
    """All phases of one step of a method; what shards and contexts leave over replicates."""
    sizes = parallel_sizes(dist.get_world_size(), shard=shards, context=contexts)
    mesh = build_mesh("cpu", sizes)
    options = {"checkpointing": mode, **HEADS[kind]}

    def parallelise(net):
        net.context = mesh.context_group(kind, net.config.num_heads)
        shard(net, mesh.weights, STORED_PRECISION)

    alone = train(Setting(family, lora, **options), step, batch_of(family, slice(None), latent))
    setting = Setting(family, lora, prepare=parallelise, **options)
    parts = shards * contexts
    for name, parameter in setting.parameters["student"].items():
        assert len(parameter.to_local()) <= -(-len(parameter) // parts), f"{name} is not sharded"
    own = own_samples(sizes, dist.get_rank(), BATCH)
    assert_equal(train(setting, step, batch_of(family, own, latent)), alone)


def half_precision_stays_wide(family, kind, lora):
    """bf16 weights and float32 time: the bounds of one process hold, though a ring merges rounded parts."""
    mesh = build_mesh("cpu", parallel_sizes(dist.get_world_size(), shard=1, context=dist.get_world_size()))

    def parallelise(net):
        net.context = mesh.context_group(kind, net.config.num_heads)
        shard(net, mesh.weights, HALF_PRECISION)

    time_stays_wide(family, parallelise, lora)


def gradients_without_the_factor_fail(family, kind):
    """The public code's fault: with a gather that cuts the gradient only, it is 1 / size of the whole loss's."""
    alone, together = networks(family, kind)
    exact = TokenShare.gather
    size = dist.get_world_size()

    def gather(share, x):
        whole = exact(share, x)
        return whole / size + (whole * (1 - 1 / size)).detach()

    TokenShare.gather = gather
    try:
        x, t, text = inputs(family, UNEVEN)
        for net in (alone, together):
            loss_of(net(x.primal, t.primal, text)).backward()
    finally:
        TokenShare.gather = exact
    average_gradients(together)
    for name, wanted in gradients(alone).items():
        assert relative(gradients(together)[name], wanted) > 0.1, "the factor is missing and the test did not notice"
        assert relative(gradients(together)[name], wanted / size) < TOLERANCE, name


class CountCollectives(CountOps):
    """Counts everything that is said between processes; with a profile it has to count as communication."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            clock = current_clock()
            assert clock is None or clock.part == "communication", f"{func} counts as {clock.part}"
            return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))


def collectives(family, kind, mode):
    """Of a dual forward and of its backward; and the number of blocks."""
    _, net = networks(family, kind, mode)
    x, t, text = inputs(family, UNEVEN)
    with StepClock(torch.device("cpu")).running():
        with CountCollectives() as forward:
            velocity = net(x, t, text)
        with CountCollectives() as backward:
            velocity.primal.square().sum().backward()
    return forward.counts, backward.counts, len(net.blocks)


def communication_is_packed(family):
    """Value, tangent, q, k and v travel together; a recomputation that keeps attention's results says nothing."""
    size = dist.get_world_size()
    for mode, again in (("none", 0), ("asymmetric", 0), ("block", 1)):
        forward, backward, blocks = collectives(family, "ulysses", mode)
        assert forward == {ALL_TO_ALL: 2 * blocks, ALL_GATHER: 1}, (mode, forward)
        assert backward == {ALL_TO_ALL: 2 * blocks * (1 + again)}, (mode, backward)
        forward, backward, blocks = collectives(family, "ring", mode)
        steps = blocks * (size - 1)
        assert forward == {SEND: steps, RECEIVE: steps, ALL_GATHER: 1}, (mode, forward)
        steps = blocks * (2 * size - 1 + again * (size - 1))
        assert backward == {SEND: steps, RECEIVE: steps}, (mode, backward)
