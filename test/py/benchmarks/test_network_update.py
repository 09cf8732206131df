"""The student update of `make bench-network`: its parts on a CPU, and the table of budget and measured."""

from __future__ import annotations

import pytest
import torch
from network_bench.budget import BUDGET_MS, BUDGET_RATE, budget_lines
from network_bench.cases import CASES
from network_bench.families import family_of
from network_bench.passes import one_process, student_update


def test_an_update_is_timed_by_parts():
    device = torch.device("cpu")
    with one_process(device):
        step = student_update(CASES["smoke"], None, device, False)
        step()
        step()
    assert step.watch.medians_ms().keys() == {"teacher", "dual forward", "backward", "optimizer"}
    assert min(step.watch.medians_ms().values()) > 0


def row(name, attention, products, fused, **more):
    ms = {"attention": attention, "matrix products": products, "fused elementwise": fused}
    return {"case": "wan2.1-1.3b", "pass": name, "compiled": False, "kernels": {"ms": ms}, **more}


def test_measured_parts_add_up():
    parts = {"teacher": 900.0, "dual forward": 1000.0, "backward": 1200.0, "optimizer": 10.0}
    update = row("update", 1400, 700, 150, ms=3110.0, parts_ms=parts, matmul_flops_per_s=BUDGET_RATE)
    update["kernels"]["ms"]["attention backward"] = 850.0
    rows = [row("plain", 300, 100, 20), row("dual", 800, 200, 40), update]
    lines = budget_lines(rows)
    assert len(lines) == 1 + len(BUDGET_MS) + 1
    measured = [float(line.split(" ms")[1]) for line in lines[1:]]
    assert sum(measured[:-1]) == pytest.approx(measured[-1])
    assert budget_lines(rows[:2]) == []


@pytest.mark.parametrize(
    ("kernel", "family"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26_64x64x128", "attention backward"),
        ("void cudnn::fusion::compute_dot_do_o_specialized<true, __nv_bfloat16, 128>", "attention backward"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128", "attention"),
        ("attention_jvp_kernel", "attention"),
        ("nvjet_sm90_tst_192x192_64x4_2x1_v_bz_coopB_bias_TNN", "matrix products"),
        ("layer_norm_backward_kernel", "fused elementwise"),
        ("void at::native::reduce_kernel<128, 4>", "reductions"),
    ],
)
def test_families_of_kernels(kernel, family):
    assert family_of(kernel) == family
