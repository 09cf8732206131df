"""Adapters on both networks: gradients, isolation of the roles, merging, extraction, files."""

from __future__ import annotations

import copy

import pytest
import torch
from networks.checks import MODES, CountOps, assert_equal_gradients, loss_of
from networks.small_wan import derivative, relative
from safetensors.torch import load_file

from rcm_sidecar.checkpoints import load_network, save_network
from rcm_sidecar.dual import Dual
from rcm_sidecar.errors import ConfigError
from rcm_sidecar.networks import TextCache, build
from rcm_sidecar.networks.lora import (
    LoraConfig,
    LoraLinear,
    adapter_parameters,
    attach,
    extract,
    is_adapter,
    merge_into_base,
    weight_deltas,
)

CONFIG = LoraConfig(rank=3, alpha=6.0)


def adapted(family, mode="none", dtype=torch.float64, config=CONFIG):
    """Both roles with random adapters: `up` starts at zero in real use, and nothing would be tested."""
    net = family.small.small_network(dtype)
    attach(net, config, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(6)
    for name, parameter in net.named_parameters():
        if is_adapter(name) and name.endswith(".up"):
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    net.activation_checkpointing = mode
    return net


def merged_weights(net, role):
    """The base weights plus scale B A by name, in one graph with the adapters: what the twin takes."""
    weights = {name: p for name, p in net.named_parameters() if not is_adapter(name)}
    for name, module in net.named_modules():
        if isinstance(module, LoraLinear) and role is not None:
            adapter = module.lora[role]
            weights[f"{name}.weight"] = module.weight + 2.0 * adapter.up @ adapter.down
    return weights


def role_gradients(net, role):
    return {name: parameter.grad for name, parameter in adapter_parameters(net, role).items()}


def twin_gradients(family, role):
    net = adapted(family)
    x, t, text, *_ = family.small.small_inputs()
    loss_of(family.twin.velocity(merged_weights(net, role), net.config, x, t, text)).backward()
    return role_gradients(net, role)


def dual_velocity(net, inputs, role):
    x, t, text, tx, tt = inputs
    return net(Dual(x, tx), Dual(t, tt), text, adapter=role)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tangents", [False, True], ids=["plain", "dual"])
def test_gradients_equal_those_of_the_merged_formulas(family, mode, tangents):
    net = adapted(family, mode)
    inputs = family.small.small_inputs()
    velocity = dual_velocity(net, inputs, "student").primal if tangents else net(*inputs[:3], adapter="student")
    loss_of(velocity).backward()
    assert_equal_gradients(role_gradients(net, "student"), twin_gradients(family, "student"))
    others = [p.grad for name, p in net.named_parameters() if ".lora.student." not in name]
    assert others and all(grad is None for grad in others)


@pytest.mark.parametrize("mode", MODES)
def test_a_role_used_between_forward_and_backward_changes_no_gradient(family, mode):
    net = adapted(family, mode)
    inputs = family.small.small_inputs()
    loss = loss_of(dual_velocity(net, inputs, "student").primal)
    net(*inputs[:3], adapter="critic").sum()
    with torch.no_grad():
        net(*inputs[:3])
        net(*inputs[:3], adapter="critic")
    loss.backward()
    assert_equal_gradients(role_gradients(net, "student"), twin_gradients(family, "student"))
    assert all(gradient is None for gradient in role_gradients(net, "critic").values())


def test_selective_checkpointing_recomputes_no_product_but_that_of_up(family):
    """A product over `rank` numbers: its result takes as much memory as that of a whole layer."""

    def backward_products(mode):
        net = adapted(family, mode)
        loss = loss_of(dual_velocity(net, family.small.small_inputs(), "student").primal)
        with CountOps() as backward:
            loss.backward()
        adapters = sum(isinstance(module, LoraLinear) for module in net.modules())
        return backward.gemms + backward.counts["bmm"] + backward.counts["baddbmm"], adapters

    (once, adapters), (again, _) = backward_products("none"), backward_products("selective")
    # The recomputation may stop before the last layer's adapter, whose result nothing in the block needs.
    blocks = 2
    assert adapters - blocks <= again - once <= adapters


@pytest.mark.parametrize("mode", MODES)
def test_graphs_of_two_roles_live_at_once(family, mode):
    net = adapted(family, mode)
    inputs = family.small.small_inputs()
    losses = [loss_of(dual_velocity(net, inputs, role).primal) for role in ("student", "critic")]
    for loss in losses:
        loss.backward()
    for role in ("student", "critic"):
        assert_equal_gradients(role_gradients(net, role), twin_gradients(family, role))


def test_derivative_equals_functorch_of_the_merged_formulas(family):
    net = adapted(family)
    x, t, text, tx, tt = family.small.small_inputs()
    for role in ("student", "critic", None):
        weights = {name: weight.detach() for name, weight in merged_weights(net, role).items()}
        value, wanted = torch.func.jvp(
            lambda x, t, w=weights: family.twin.velocity(w, net.config, x, t, text), (x, t), (tx, tt)
        )
        out = dual_velocity(net, (x, t, text, tx, tt), role)
        assert relative(out.primal, value) < 1e-13
        assert relative(out.tangent, wanted) < 1e-12


def test_a_fresh_adapter_changes_nothing_and_no_role_is_the_base_bit_for_bit(family):
    plain = family.small.small_network(torch.float32)
    inputs = family.small.small_inputs(torch.float32)
    with torch.no_grad():
        wanted = derivative(plain, *inputs)
        attach(plain, CONFIG)
        for role in (None, "student", "critic"):
            out = dual_velocity(plain, inputs, role)
            assert torch.equal(out.primal, wanted.primal) and torch.equal(out.tangent, wanted.tangent)
        out = dual_velocity(adapted(family, dtype=torch.float32), inputs, None)
        assert torch.equal(out.primal, wanted.primal) and torch.equal(out.tangent, wanted.tangent)


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16], ids=["fp32-base", "bf16-base"])
def test_training_never_changes_the_teacher_by_a_bit(family, base):
    net = adapted(family, "asymmetric", base)
    inputs = family.small.small_inputs(torch.float32)
    with torch.no_grad():
        teacher = dual_velocity(net, inputs, None)
        before = {role: net(*inputs[:3], adapter=role) for role in ("student", "critic")}
    weights = {name: p.detach().clone() for name, p in net.named_parameters() if not is_adapter(name)}
    for role in ("student", "critic"):
        parameters = list(adapter_parameters(net, role).values())
        assert {p.dtype for p in parameters} == {torch.float32}
        optimizer = torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1)
        for _ in range(3):
            loss_of(dual_velocity(net, inputs, role).primal).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        after = dual_velocity(net, inputs, None)
        assert torch.equal(after.primal, teacher.primal) and torch.equal(after.tangent, teacher.tangent)
        for role in ("student", "critic"):
            assert relative(net(*inputs[:3], adapter=role), before[role]) > 0.01
    for name, weight in weights.items():
        assert torch.equal(net.get_parameter(name), weight), name


def test_merged_weights_equal_base_plus_delta_to_fp32_rounding(family, tmp_path):
    net = adapted(family, dtype=torch.float32)
    inputs = family.small.small_inputs(torch.float32)
    exact = {
        name: weight.detach().double()
        for name, weight in merged_weights(copy.deepcopy(net).double(), "student").items()
    }
    with torch.no_grad():
        wanted = net(*inputs[:3], adapter="student")
    save_network(net, tmp_path / "w.safetensors", adapter="student")
    stored = load_file(tmp_path / "w.safetensors")
    assert stored.keys() == exact.keys()
    deltas = weight_deltas(net, "student")
    for name, weight in exact.items():
        # One rounding of each product and sum: a few units in the last place of the larger summand.
        size = net.get_parameter(name).abs() + (deltas[name]().abs() if name in deltas else 0)
        assert ((stored[name].double() - weight).abs() <= 4 * 2**-24 * size.double() + 1e-7 * size.max()).all(), name
    merge_into_base(net, "student")
    assert not net.adapters and not any(is_adapter(name) for name, _ in net.named_parameters())
    assert all(torch.equal(net.get_parameter(name), weight) for name, weight in stored.items())
    with torch.no_grad():
        assert relative(net(*inputs[:3]), wanted) < 1e-5


def test_saving_without_a_role_writes_the_base_and_loading_leaves_adapters_alone(family, tmp_path):
    net = adapted(family, dtype=torch.float32)
    other = adapted(family, dtype=torch.float32)
    for parameter in other.parameters():
        parameter.data.add_(1)
    load_network(other, save_network(net, tmp_path / "w", "diffusers"))
    for name, parameter in net.named_parameters():
        same = torch.equal(parameter, other.get_parameter(name))
        assert same != is_adapter(name), name


def test_extract_finds_a_change_of_the_rank_exactly_and_reports_what_is_left(family):
    net = adapted(family)
    tuned = copy.deepcopy(net)
    merge_into_base(tuned, "critic")
    inputs = family.small.small_inputs()[:3]
    assert extract(net, "student", tuned) < 1e-12
    with torch.no_grad():
        assert relative(net(*inputs, adapter="student"), tuned(*inputs)) < 1e-12
        generator = torch.Generator().manual_seed(8)
        for name in weight_deltas(net, "student"):
            weight = tuned.get_parameter(name)
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    left = extract(net, "student", tuned)
    assert 0.05 < left < 0.9
    changes = [tuned.get_parameter(n) - net.get_parameter(n) for n in weight_deltas(net, "student")]
    residuals = [c - d() for c, d in zip(changes, weight_deltas(net, "student").values(), strict=True)]
    ratio = sum(r.square().sum() for r in residuals).sqrt() / sum(c.square().sum() for c in changes).sqrt()
    assert ratio.item() == pytest.approx(left, rel=1e-9)


@pytest.mark.parametrize(("targets", "layers"), [(("attention",), 8), (("ffn",), 2), (("attention", "ffn"), 10)])
def test_targets(family, targets, layers):
    net = adapted(family, config=LoraConfig(rank=2, alpha=2.0, targets=targets))
    found = [name for name, module in net.named_modules() if isinstance(module, LoraLinear)]
    assert len(found) == layers * net.config.num_layers
    assert len(adapter_parameters(net, "student")) == len(adapter_parameters(net, "critic")) == 2 * len(found)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {
        *adapter_parameters(net, "student"), *adapter_parameters(net, "critic")
    }  # fmt: skip


def test_parameters_of_the_adapters_of_the_full_networks():
    for name, width, ffn, text, blocks in (
        ("wan2.1-t2v-1.3b", 1536, 8960, 1536, 30),
        ("cosmos-predict2-t2i-2b", 2048, 8192, 1024, 28),
    ):
        net = build(name, device="meta", dtype=torch.bfloat16)
        attach(net, LoraConfig(rank=64, alpha=64.0), roles=("student",))
        count = sum(p.numel() for p in adapter_parameters(net, "student").values())
        assert count == blocks * 64 * (6 * 2 * width + 2 * (width + text) + 2 * (width + ffn))
        assert {p.dtype for p in adapter_parameters(net, "student").values()} == {torch.float32}


def test_a_text_cache_belongs_to_one_role(family):
    net = adapted(family)
    inputs = family.small.small_inputs()[:3]
    cache = TextCache()
    with torch.no_grad():
        wanted = net(*inputs, adapter="student")
        for _ in range(2):
            assert torch.equal(net(*inputs, adapter="student", kv_cache=cache), wanted)
        for role in ("critic", None):
            with pytest.raises(ValueError, match="student"):
                net(*inputs, adapter=role, kv_cache=cache)


def test_misuse_is_named(family):
    net = family.small.small_network()
    inputs = family.small.small_inputs()[:3]

    def refused(code, words, action):
        with pytest.raises(ConfigError, match=words) as caught:
            action()
        assert caught.value.code == code

    refused("E_ADAPTER_UNKNOWN", "student", lambda: net(*inputs, adapter="student"))
    refused("E_CONFIG_VALUE", "rank", lambda: LoraConfig(rank=0, alpha=1.0))
    refused("E_CONFIG_VALUE", "targets", lambda: LoraConfig(rank=1, alpha=1.0, targets=("mlp",)))
    refused("E_CONFIG_VALUE", "exceeds a side", lambda: attach(net, LoraConfig(rank=25, alpha=1.0)))
    assert not net.adapters and all(p.requires_grad for p in net.parameters())
    attach(net, CONFIG, roles=("student",))
    refused("E_ADAPTER_UNKNOWN", "critic", lambda: net(*inputs, adapter="critic"))
    refused("E_ADAPTER_UNKNOWN", "critic", lambda: weight_deltas(net, "critic"))
    refused("E_CONFIG_VALUE", "already", lambda: attach(net, CONFIG))
