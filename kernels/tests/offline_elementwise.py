"""Compile the elementwise kernels for a GPU that is not there: registers, spills and the widths of memory accesses.

python offline_elementwise.py <case> ...      prints one JSON line a case
"""

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from offline import NoDevice, disassembled  # noqa: E402
from triton.runtime.driver import driver  # noqa: E402

from rcm_kernels import gelu_jvp, norm_jvp, rope_jvp  # noqa: E402

BF16, F32 = torch.bfloat16, torch.float32
KERNELS = (
    norm_jvp.layer_norm_jvp_kernel,
    norm_jvp.layer_norm_backward_kernel,
    rope_jvp.rms_norm_jvp_kernel,
    rope_jvp.rms_norm_backward_kernel,
    gelu_jvp.activation_jvp_kernel,
)


def captured(launch):
    """What the one kernel that `launch` starts compiles to; nothing is run."""
    found = []

    def compile_only(kernel, run):
        return lambda *args, **options: found.append(run(*args, **{**options, "warmup": True}))

    kept = [(kernel, kernel.run) for kernel in KERNELS]
    for kernel, run in kept:
        kernel.device_caches.clear()
        kernel.run = compile_only(kernel, run)
    try:
        launch()
    finally:
        for kernel, run in kept:
            kernel.run = run
    assert len(found) == 1
    return found[0]


def tokens(dim, dtype=BF16, length=64):
    return torch.zeros(1, length, dim, dtype=dtype)


def layer_norm(dim, *, dual=True, branch=True, gate=True, norm=True, save=False, dtype=BF16):
    x = tokens(dim, dtype)
    rows = torch.zeros(1, 6, dim)
    g, f, s, tg, tf, ts = (rows[:, i : i + 1] for i in range(6))
    y = x if branch else None
    g, tg = (g, tg) if gate else (None, None)
    f, s, tf, ts = (f, s, tf, ts) if norm else (None,) * 4
    t = (x, y, tg, tf, ts) if dual else (None,) * 5
    outputs = (y, x if norm else None, y if dual else None, x if norm and dual else None, rows if save else None)
    norm_jvp.launch(x, y, g, f, s, *t, outputs, True, 1e-6)


def layer_norm_backward(dim, *, gate=True, sums=True):
    x, row = tokens(dim), torch.zeros(1, 1, dim)
    stats = torch.zeros(1, 64, 2)
    norm_jvp.launch_backward(
        *(x, x, x, stats, x if gate else None, row if gate else None, row, x, x if gate else None),
        (gate and sums, sums, sums),
        True,
    )


def rms_norm(heads, dim, *, interleaved=True, table=True, dual=True, save=False):
    x = torch.zeros(1, 64, heads, dim, dtype=BF16)
    weight = torch.zeros(heads * dim if interleaved else dim, dtype=BF16)
    angles = torch.zeros(64, dim // 2, 2) if table else None
    outputs = (x, x if dual else None, torch.zeros(64) if save else None)
    rope_jvp.launch(x, x if dual else None, weight, angles, outputs, interleaved, 1e-6)


def rms_norm_backward(heads, dim, *, interleaved=True, table=True):
    x = torch.zeros(1, 64, heads, dim, dtype=BF16)
    weight = torch.zeros(heads * dim if interleaved else dim, dtype=BF16)
    angles = torch.zeros(64, dim // 2, 2) if table else None
    rope_jvp.launch_backward(x, x, torch.zeros(64 * heads), weight, angles, x, True, interleaved)


def activation(kind, *, dual=True, value=True):
    x = torch.zeros(1 << 16, dtype=BF16)
    gelu_jvp.launch(x, x if dual else None, x if value else None, x if dual else None, kind)


CASES = {
    **{
        f"{name} {dim}": run
        for dim in (1536, 2048, 5120)
        for name, run in {
            "norm": lambda dim=dim: layer_norm(dim, branch=False),
            "norm plain": lambda dim=dim: layer_norm(dim, branch=False, dual=False),
            "gate norm": lambda dim=dim: layer_norm(dim),
            "add norm": lambda dim=dim: layer_norm(dim, gate=False),
            "gate": lambda dim=dim: layer_norm(dim, norm=False),
            "gate norm plain save": lambda dim=dim: layer_norm(dim, dual=False, save=True),
            "norm backward": lambda dim=dim: layer_norm_backward(dim, gate=False),
            "gate norm backward": lambda dim=dim: layer_norm_backward(dim),
        }.items()
    },
    "norm fp32 1536": lambda: layer_norm(1536, branch=False, dtype=F32),
    "rms rope 12x128": lambda: rms_norm(12, 128),
    "rms rope 12x128 plain": lambda: rms_norm(12, 128, dual=False),
    "rms rope 40x128": lambda: rms_norm(40, 128),
    "rms rope halves 16x128": lambda: rms_norm(16, 128, interleaved=False),
    "rms rope halves 40x128": lambda: rms_norm(40, 128, interleaved=False),
    "rms 1536": lambda: rms_norm(1, 1536, table=False),
    "rms 5120": lambda: rms_norm(1, 5120, table=False),
    "rms 16x128": lambda: rms_norm(16, 128, table=False, interleaved=False),
    "rms rope backward 12x128": lambda: rms_norm_backward(12, 128),
    "rms rope backward 40x128": lambda: rms_norm_backward(40, 128),
    "rms rope halves backward 16x128": lambda: rms_norm_backward(16, 128, interleaved=False),
    "rms backward 1536": lambda: rms_norm_backward(1, 1536, table=False),
    "gelu tanh": lambda: activation("gelu_tanh"),
    "gelu tanh plain": lambda: activation("gelu_tanh", dual=False),
    "gelu tanh backward": lambda: activation("gelu_tanh", value=False),
    "gelu erf": lambda: activation("gelu_erf"),
    "silu": lambda: activation("silu"),
}


def report(compiled):
    """Registers, spill bytes, and bytes of each global load and store by width."""
    usage, sass = disassembled(compiled.asm["cubin"])
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    widths = {}
    for kind in ("LDG", "STG"):
        found = re.findall(rf"\b{kind}\.E(?:\.\w+)*", sass)
        bits = [re.search(r"\.(128|64|U16|S16|U8)\b", one) for one in found]
        widths[kind] = {}
        for one in bits:
            name = one.group(1) if one else "32"
            widths[kind][name] = widths[kind].get(name, 0) + 1
    return {
        "registers": int(registers),
        "stack": int(stack),
        "loads": widths["LDG"],
        "stores": widths["STG"],
        "shared": compiled.metadata.shared,
        "instructions": len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", sass, re.MULTILINE)),
        "warps": compiled.metadata.num_warps,
    }


if __name__ == "__main__":
    capability = int(sys.argv[1])
    driver.set_active(NoDevice(capability))
    for case in sys.argv[2:] or CASES:
        print(json.dumps({"case": case, **report(captured(CASES[case]))}), flush=True)
