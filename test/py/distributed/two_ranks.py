"""What each of two gloo processes does in test_fsdp.py. Importable by name, because the processes are spawned."""

from __future__ import annotations

import dataclasses
from functools import partial
from unittest.mock import patch

import torch
import torch.distributed as dist
from networks import small_cosmos, small_wan
from networks.small_wan import relative
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from rcm_sidecar.distributed.fsdp import HALF_PRECISION, STORED_PRECISION, shard
from rcm_sidecar.dual import Dual, attention, fused
from rcm_sidecar.methods.dcm import dcm_loss
from rcm_sidecar.methods.dmd import critic_loss, dmd_loss, rollout
from rcm_sidecar.methods.scm import scm_loss
from rcm_sidecar.networks.lora import LoraConfig, adapter_parameters, attach, is_adapter
from rcm_sidecar.training import offload
from rcm_sidecar.training.ema import Ema, power_decay
from rcm_sidecar.training.optimizer import AdamW

RANKS = 2
BATCH = 4
TOLERANCE = 1e-12
FAMILIES = {"wan": small_wan, "cosmos": small_cosmos}


class Setting:
    """Student, critic and teacher as callables, and the parameters that train, by role."""

    def __init__(self, family, lora, prepare=lambda net: None, checkpointing="asymmetric", **sizes):
        self.family = FAMILIES[family]
        self.checkpointing = checkpointing
        self.sizes = {"out_dim": 3, **sizes}
        if lora:
            net = self._network(0)
            attach(net, LoraConfig(rank=2, alpha=4.0), generator=torch.Generator().manual_seed(5))
            self._randomise(net)
            prepare(net)
            self.nets = {role: partial(net, adapter=role) for role in ("student", "critic")} | {"teacher": net}
            self.parameters = {role: adapter_parameters(net, role) for role in ("student", "critic")}
            return
        nets = {role: self._network(seed) for seed, role in enumerate(("student", "critic", "teacher"))}
        nets["teacher"].requires_grad_(False)
        for net in nets.values():
            prepare(net)
        self.nets = nets
        self.parameters = {role: dict(nets[role].named_parameters()) for role in ("student", "critic")}

    def _network(self, seed):
        net = self.family.small_network(seed=seed, **self.sizes)
        net.activation_checkpointing = self.checkpointing
        return net

    @staticmethod
    def _randomise(net):
        generator = torch.Generator().manual_seed(6)
        for name, parameter in net.named_parameters():
            if is_adapter(name) and name.endswith(".up"):
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.data.copy_(0.2 * noise)


def batch_of(family, part, latent=None):
    """The samples `part` of a fixed batch; `latent` is (T, H, W)."""
    generator = torch.Generator().manual_seed(3)
    shape = (BATCH, 3, *(latent or (2 if family == "wan" else 1, 4, 6)))

    def randn(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)[part]

    u = torch.tensor([0.3, 0.7, 1.1, 1.4], dtype=torch.float64)[part]
    x0, noise, fresh = randn(*shape), randn(*shape), randn(*shape)
    text, negative = randn(BATCH, 5, 10), randn(BATCH, 5, 10)
    condition = {"text": text, "negative": negative, "guidance": 1.7, "time_scale": 1000.0 if family == "wan" else 1.0}
    return x0, noise, fresh, u, condition


def scm_step(nets, batch):
    x0, noise, _, u, condition = batch
    yield "student", scm_loss(nets["student"], nets["teacher"], x0, noise, u, **condition).total


def dcm_step(nets, batch):
    x0, noise, _, u, condition = batch
    yield "student", dcm_loss(nets["student"], nets["teacher"], x0, noise, u / 2, skip=2, **condition).total


def dmd_step(nets, batch):
    """The student's phase, then the critic's on a new rollout."""
    x0, noise, fresh, u, condition = batch
    shared = {"text": condition["text"], "time_scale": condition["time_scale"]}
    times = torch.stack([torch.full_like(u, torch.pi / 2), torch.full_like(u, 1.1)])
    generated = rollout(nets["student"], noise, times, fresh[None], **shared)
    yield "student", dmd_loss(generated, x0, u, critic=nets["critic"], teacher=nets["teacher"], **condition).total
    with torch.no_grad():
        generated = rollout(nets["student"], noise, times, fresh[None], **shared)
    yield "critic", critic_loss(generated, x0, u, critic=nets["critic"], **shared).total


STEPS = {"scm": scm_step, "dcm": dcm_step, "dmd": dmd_step}


def train(setting, step, batch):
    """Run the phases of one step; the gradients and the updated weights of each phase's network."""
    results = {}
    for role, loss in STEPS[step](setting.nets, batch):
        loss.backward()
        parameters = setting.parameters[role]
        for name, parameter in parameters.items():
            results[role, name, "gradient"] = whole(parameter.grad).clone()
        others = [p for other, named in setting.parameters.items() if other != role for p in named.values()]
        assert all(parameter.grad is None for parameter in others)
        optimizer = torch.optim.AdamW(parameters.values(), lr=0.01, betas=(0.0, 0.999))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, parameter in parameters.items():
            results[role, name, "weight"] = whole(parameter.detach()).clone()
    return results


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def half():
    """This rank's samples."""
    share = BATCH // RANKS
    return slice(dist.get_rank() * share, (dist.get_rank() + 1) * share)


def step_equals_one_process(family, lora, step, kernels=False, mode="asymmetric"):
    """With `kernels` the two processes compute through `rcm_kernels` (its CPU form), the one they equal does not."""
    mesh = init_device_mesh("cpu", (RANKS,))
    alone = train(Setting(family, lora, checkpointing="none"), step, batch_of(family, slice(None)))
    if kernels:
        with patch.object(fused, "runs_fused", lambda _: True), patch.object(attention, "runs_fused", lambda _: True):
            return sharded_step_equals(family, lora, step, mesh, alone, mode)
    sharded_step_equals(family, lora, step, mesh, alone, mode)


def sharded_step_equals(family, lora, step, mesh, alone, mode):
    setting = Setting(family, lora, prepare=lambda net: shard(net, mesh, STORED_PRECISION), checkpointing=mode)
    for name, parameter in setting.parameters["student"].items():
        assert len(parameter.to_local()) <= -(-len(parameter) // RANKS), f"{name} is not sharded"
    assert_equal(train(setting, step, batch_of(family, half())), alone)


def offloaded_updates_equal(family, lora):
    """Sharded moments and averages that rest in main memory, a few tensors at a time: the bits of those that do not."""
    mesh = init_device_mesh("cpu", (RANKS,))
    results = []
    for offloaded in (False, True):
        setting = Setting(family, lora, prepare=lambda net: shard(net, mesh, STORED_PRECISION))
        parameters = setting.parameters["student"]
        optimizer = AdamW(parameters, betas=(0.9, 0.99), epsilon=1e-8, weight_decay=0.01, offload=offloaded)
        averages = Ema(parameters, power_decay(0.1), offloaded)
        with patch.object(offload, "BUCKET_ELEMENTS", 100):
            for _ in range(2):
                for _, loss in scm_step(setting.nets, batch_of(family, half())):
                    loss.backward()
                optimizer.step(0.01)
                optimizer.zero_grad()
                averages.update(parameters)
        state = {**parameters, **optimizer.state_dict(), **{f"ema/{name}": w for name, w in averages.weights.items()}}
        results.append({name: whole(value).detach().clone() for name, value in state.items()})
    without, rested = results
    assert without.keys() == rested.keys() and len(without) > 3 * len(parameters)
    assert all(torch.equal(rested[name], value) for name, value in without.items())


def assert_equal(together, alone):
    """Gradients and weights of several processes are those of one, and none is zero."""
    assert together.keys() == alone.keys() and alone
    for key, wanted in alone.items():
        assert wanted.norm() > 0, key
        assert relative(together[key], wanted) < TOLERANCE, (key, relative(together[key], wanted))


def time_stays_wide(family, shard_net, lora=False):
    """Velocity, derivative and gradients with bf16 parameters; the dtype in which the time path reaches the blocks.

    With LoRA the frozen base is stored in bf16, except for the time path and the head.
    """
    exact, net = (FAMILIES[family].small_network(dtype) for dtype in (torch.float64, torch.float32))
    if lora:
        for name, parameter in net.named_parameters():
            if not name.startswith(net.wide_parts):
                parameter.data = parameter.data.bfloat16()
        attach(net, LoraConfig(rank=2, alpha=4.0))
    role = "student" if lora else None
    shard_net(net)
    watch_time(net)
    watch_weights(net)
    x, t, text, tx, tt = FAMILIES[family].small_inputs(torch.float32)
    out = net(Dual(x, tx), Dual(t, tt), text, adapter=role)
    assert out.primal.dtype == out.tangent.dtype == torch.float32
    x, t, text, tx, tt = FAMILIES[family].small_inputs()
    wanted = exact(Dual(x, tx), Dual(t, tt), text)
    assert 1e-5 < relative(out.primal.double(), wanted.primal) < 0.03
    assert relative(out.tangent.double(), wanted.tangent) < 0.05
    out.primal.square().sum().backward()
    trained = adapter_parameters(net, role) if lora else dict(net.named_parameters())
    wanted.primal.square().sum().backward()
    for name, parameter in trained.items():
        assert parameter.dtype == parameter.grad.dtype == torch.float32, name
    if not lora:
        for name, parameter in exact.named_parameters():
            assert relative(whole(trained[name].grad).double(), parameter.grad) < 0.1, name


def watch_time(net):
    """Check what the blocks get from the time path, value and tangent; after sharding, so casts have happened."""

    def hook(_block, arguments):
        duals = [argument for argument in arguments[1:] if isinstance(argument, Dual)]
        assert duals
        for dual in duals:
            assert dual.primal.dtype == dual.tangent.dtype == torch.float32, "the time path reached a block rounded"

    for block in net.blocks:
        block.register_forward_pre_hook(hook)


def watch_weights(net):
    """Check the gathered weights: float32 in the time path and the head, bf16 in the blocks."""

    def expect(dtype):
        def hook(layer, _arguments):
            assert layer.weight.dtype == dtype, f"a weight is gathered as {layer.weight.dtype}, not {dtype}"

        return hook

    for path, layer in net.named_modules():
        if isinstance(layer, torch.nn.Linear) and path.startswith((*net.wide_parts, "blocks")):
            layer.register_forward_pre_hook(expect(torch.bfloat16 if path.startswith("blocks") else torch.float32))


def bf16_parameters(family):
    mesh = init_device_mesh("cpu", (RANKS,))
    for lora in (False, True):
        time_stays_wide(family, lambda net: shard(net, mesh, HALF_PRECISION), lora)


def casting_the_inputs_fails(family):
    """The same test with cast_forward_inputs, everywhere (the network refuses the time) and in the blocks alone."""
    mesh = init_device_mesh("cpu", (RANKS,))
    casting = dataclasses.replace(HALF_PRECISION, cast_forward_inputs=True)

    def blocks_cast(net):
        for block in net.blocks:
            fully_shard(block, mesh=mesh, mp_policy=casting)
        fully_shard(net, mesh=mesh, mp_policy=STORED_PRECISION)

    for shard_net, error, words in (
        (lambda net: shard(net, mesh, casting), TypeError, "t must be float32"),
        (blocks_cast, AssertionError, "reached a block rounded"),
    ):
        try:
            time_stays_wide(family, shard_net)
        except error as caught:
            assert words in str(caught)
        else:
            raise RuntimeError("time was rounded to bf16 and the test did not notice")
