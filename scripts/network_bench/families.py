"""Device time of a pass by kind of kernel."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

# The first pattern that fits a kernel's name gives its family.
FAMILIES = (
    # cuDNN's backward is three kernels: rowsum(dO O), the gradients, and dQ from float32.
    ("attention backward", r"sdpa\w*bprop|compute_dot_do_o|convert_dq|flash_bwd|fmha\w*backward"),
    ("attention", r"attention_jvp|merge_kernel|fmha|flash|sdpa|sdp_"),
    ("matrix products", r"gemm|nvjet|cutlass|cublas|splitK|xmma"),
    ("fused elementwise", r"_jvp_kernel|_plain_kernel|_backward_kernel|_sums_kernel"),
    ("compiled elementwise", r"^triton_"),
    ("copies", r"memcpy|memset|copy_kernel|CatArray"),
    ("reductions", r"reduce|norm|softmax"),
    ("optimizer and lists", r"multi_tensor|foreach"),
    ("collectives", r"nccl"),
    ("eager elementwise", r"elementwise|vectorized|unrolled"),
)


def family_of(kernel: str) -> str:
    """The family of a kernel by its name."""
    return next((name for name, pattern in FAMILIES if re.search(pattern, kernel, re.IGNORECASE)), "other")


def breakdown(step: Callable[[], object]) -> dict[str, object]:
    """One profiled call: milliseconds and launches by family, and the thirty kernels that took longest."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    time_ms: Counter[str] = Counter()
    launches: Counter[str] = Counter()
    kernels = []
    for event in profiler.key_averages():
        spent = event.self_device_time_total / 1e3
        if not spent:
            continue
        family = family_of(event.key)
        time_ms[family] += spent
        launches[family] += event.count
        kernels.append({"kernel": event.key[:160], "family": family, "ms": spent, "launches": event.count})
    kernels.sort(key=lambda row: -float(row["ms"]))
    return {"ms": dict(time_ms.most_common()), "launches": dict(launches), "longest": kernels[:30]}
