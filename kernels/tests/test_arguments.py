"""Wrong arguments raise ValueError naming the argument; dispatch does what it was told."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cases import inputs

from rcm_kernels import attention, attention_backward, attention_jvp, use_backend
from rcm_kernels.dispatch import choose, tile_table
from rcm_kernels.plain import choose_backward
from rcm_kernels.problem import check_alignment, check_for_kernels

ARGS = inputs(2, 3, 5, 7, 16, dtype=torch.float32)
NAMES = ("q", "k", "v", "tq", "tk", "tv")


def replaced(**changes):
    return [changes.get(name, x) for name, x in zip(NAMES, ARGS, strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_rank_dtype_and_shape(name):
    x = dict(zip(NAMES, ARGS, strict=True))[name]
    other = "k" if name == "q" else name  # q sets what the others must be like
    with pytest.raises(ValueError, match=f"^{name}: expected \\[batch"):
        attention_jvp(*replaced(**{name: x[0]}))
    with pytest.raises(ValueError, match=f"^{other}: expected dtype"):
        attention_jvp(*replaced(**{name: x.double()}))
    with pytest.raises(ValueError, match=f"^{other}: expected shape"):
        attention_jvp(*replaced(**{name: x[..., :8]}))
    with pytest.raises(ValueError, match=f"^{other}: expected device"):
        attention_jvp(*replaced(**{name: x.to("meta")}))


def test_empty_lengths_integers_and_scale():
    with pytest.raises(ValueError, match="^q: queries must be at least 1"):
        attention_jvp(ARGS[0][:, :, :0], *ARGS[1:3])
    with pytest.raises(ValueError, match="^k: keys must be at least 1"):
        attention_jvp(ARGS[0], ARGS[1][:, :, :0], ARGS[2][:, :, :0])
    with pytest.raises(ValueError, match="^q: dtype torch.int32"):
        attention_jvp(*(x.int() for x in ARGS[:3]))
    for scale in (float("nan"), "a", [1.0], torch.ones(2)):
        for call in (lambda s: attention_jvp(*ARGS, scale=s), lambda s: attention(*ARGS[:3], scale=s)):
            with pytest.raises(ValueError, match="^scale: "):
                call(scale)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_tensor(name):
    array = dict(zip(NAMES, ARGS, strict=True))[name].numpy()
    with pytest.raises(ValueError, match=f"^{name}: expected a torch.Tensor, got ndarray$"):
        attention_jvp(*replaced(**{name: array}))
    if name in "qkv":
        for call, count in ((attention_jvp, 6), (attention, 3)):
            with pytest.raises(ValueError, match=f"^{name}: expected a torch.Tensor, got NoneType$"):
                call(*replaced(**{name: None})[:count])


def backward_arguments():
    result = attention_jvp(*ARGS[:3])
    return {**dict(zip("qkv", ARGS, strict=False)), "grad": result.out.clone(), "out": result.out, "lse": result.lse}


@pytest.mark.parametrize("name", ["grad", "q", "k", "v", "out", "lse"])
def test_backward_names_what_does_not_fit(name):
    args = backward_arguments()
    x = args[name]
    attention_backward(**args)
    other = "k" if name == "q" else name
    wrong = {
        f"^{name}: expected a torch.Tensor, got ndarray$": x.numpy(),
        f"^{name}: expected ": x[0],
        f"^{other}: expected shape": x[..., :2],
        f"^{other}: expected device": x.to("meta"),
        f"^{name}: .*dtype" if name != "q" else "^k: expected dtype": x.int(),
    }
    for message, value in wrong.items():
        with pytest.raises(ValueError, match=message):
            attention_backward(**{**args, name: value})
    if name == "grad":  # autograd's own gradients are of the output's dtype, those of a loss in float32 are not
        wide = attention_backward(**{**args, name: x.double()})
        torch.testing.assert_close(wide, attention_backward(**args))


def test_backward_checks_scale_and_mask():
    args = backward_arguments()
    with pytest.raises(ValueError, match="^scale: "):
        attention_backward(**args, scale="a")
    with pytest.raises(ValueError, match="^mask: "):
        attention_backward(**args, mask="block")


@pytest.mark.parametrize(
    "mask", ["block", ("block-causal",), ("block-causal", 0), ("block-causal", 2.0), ("block-causal", True), 3]
)
def test_unknown_masks(mask):
    with pytest.raises(ValueError, match="^mask: "):
        attention_jvp(*ARGS, mask=mask)


def test_alignment_names_the_argument_and_the_dimension():
    x = torch.zeros(2, 3, 5, 64, dtype=torch.bfloat16)
    check_alignment("q", x)
    check_alignment("q", x.transpose(1, 2))
    with pytest.raises(ValueError, match="^q: the last dimension must be contiguous"):
        check_alignment("q", x.transpose(2, 3))
    with pytest.raises(ValueError, match="^tk: the stride of dimension 0"):
        check_alignment("tk", torch.zeros(2, 3, 5, 68, dtype=torch.bfloat16)[..., :64])
    with pytest.raises(ValueError, match="^v: its address"):
        check_alignment("v", torch.zeros(1, 1, 1, 72, dtype=torch.bfloat16)[..., 1:65])
    with pytest.raises(ValueError, match="^k: the stride of dimension 0"):
        check_alignment("k", x[:1].expand(2, 3, 5, 64))


def test_kernels_need_cuda_tensors():
    with pytest.raises(ValueError, match="^q: the fused kernels need a CUDA tensor"):
        check_for_kernels({"q": ARGS[0]})


def test_backend_is_chosen_or_refused(monkeypatch):
    q, _, _, tq, tk, tv = ARGS
    assert choose(q, tq, tk, tv) == "eager"
    for name in ("triton", "hopper"):
        with use_backend(name), pytest.raises(ValueError, match=f"backend {name}: .*not a CUDA device"):
            attention_jvp(*ARGS)
        monkeypatch.setenv("RCM_KERNELS_ATTENTION", name)
        with pytest.raises(ValueError, match=f"backend {name}"):
            attention_jvp(*ARGS)
        with use_backend("eager"):  # code wins over the environment
            attention_jvp(*ARGS)
    monkeypatch.setenv("RCM_KERNELS_ATTENTION", "fast")
    with pytest.raises(ValueError, match="^RCM_KERNELS_ATTENTION: expected one of auto, hopper, triton, eager"):
        attention_jvp(*ARGS)
    monkeypatch.setenv("RCM_KERNELS_ATTENTION", "")
    attention_jvp(*ARGS)
    with pytest.raises(ValueError, match="^name: "), use_backend("cuda"):
        pass


def test_no_module_takes_the_name_of_a_function():
    """Importing a submodule sets it on the package: it must not replace what the package exports."""
    import rcm_kernels

    modules = {path.stem for path in Path(rcm_kernels.__file__).parent.glob("*.py")}
    assert not modules & set(rcm_kernels.__all__)


def test_tile_table_covers_what_dispatch_asks():
    table = tile_table()
    for columns in (64, 128):
        for pattern in ("full", "constant"):
            assert table["hopper"][f"{columns}/{pattern}"]["block_keys"] in (64, 128)
    for major in ("9", "10", "other"):
        for columns in (32, 64, 128, 256):
            assert set(table["triton"][f"{major}/{columns}"]) == {"block_rows", "block_keys", "stages", "warps"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_result_dtypes_and_strides(dtype):
    args = [x.to(dtype) for x in ARGS]
    result = attention_jvp(*args)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert (result.out.dtype, result.tangent.dtype, result.lse.dtype, result.mu.dtype) == (dtype, dtype, wide, wide)
    assert result.out.shape == result.tangent.shape == (2, 3, 5, 16) and result.lse.shape == result.mu.shape == (
        2,
        3,
        5,
    )


def test_only_a_backward_that_repeats_its_bits_runs_under_deterministic_algorithms(monkeypatch):
    """cuDNN's does not, and torch's operator for it neither refuses nor warns."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "enabled", True)
    monkeypatch.setattr(torch.version, "hip", None)
    q = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, device="cuda", shape=(1, 12, 4096, 128))
    try:
        chosen = []
        for deterministic in (False, True):
            torch.use_deterministic_algorithms(deterministic)
            chosen.append(choose_backward(q, q, 0))
    finally:
        torch.use_deterministic_algorithms(False)
    assert chosen == ["cudnn", "flash"]
