"""Timing on a CUDA device: events around each launch, median of many, queue filled first so that no launch waits.

Every measurement starts from a chip at rest: at full load these chips lower their clock to stay within their power, and
keep it low for a while after. A short row measured right after a long one is up to a quarter slower (seen on an H200).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

FILL_CYCLES = 40_000_000  # 20 to 30 ms of an idle kernel, while the host queues the launches
REST_SECONDS = 0.3


def median_ms(
    run: Callable[[], object], repeats: int = 50, warmup: int = 3, rest_seconds: float = REST_SECONDS
) -> float:
    """Median device time of `run` over `repeats` back-to-back launches, in milliseconds."""
    for _ in range(warmup):
        run()
    torch.cuda.synchronize()
    time.sleep(rest_seconds)
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    torch.cuda._sleep(FILL_CYCLES)
    for begin, end in pairs:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs)


def matmul_rate(size: int = 8192) -> float:
    """bf16 size^3 matrix product on random data, in FLOP/s."""
    a, b = (torch.randn(size, size, device="cuda").bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / median_ms(lambda: torch.mm(a, b, out=out)) * 1e3


def copy_rate(gigabytes: float = 4.0) -> float:
    """Device-to-device copy, bytes read plus bytes written, in B/s."""
    a = torch.empty(int(gigabytes * 1e9), dtype=torch.uint8, device="cuda").random_()
    b = torch.empty_like(a)
    return 2 * a.numel() / median_ms(lambda: b.copy_(a), repeats=20) * 1e3
