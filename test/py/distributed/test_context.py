"""Processes that share the tokens of each sample give the numbers of one: outputs, tangents, gradients, steps."""

from __future__ import annotations

import itertools

import pytest
import torch
from distributed import context_ranks
from distributed.context_ranks import EVEN, SCARCE, UNEVEN
from distributed.spawn import run_on_ranks
from distributed.two_ranks import FAMILIES, STEPS

from rcm_sidecar.distributed.context_parallel import ContextGroup, TokenShare
from rcm_sidecar.dual import ops

KINDS = ("ulysses", "ring")
MODES = ("none", "block", "asymmetric")


def test_two_processes(tmp_path):
    run_on_ranks(
        2,
        tmp_path,
        context_ranks,
        ("network_equals_one_process", "wan", "ulysses", "asymmetric", UNEVEN),
        ("network_equals_one_process", "cosmos", "ring", "asymmetric", UNEVEN),
        ("network_equals_one_process", "wan", "ring", "none", EVEN),
        ("plain_passes_equal_one_process", "cosmos", "ulysses", UNEVEN),
        ("plain_passes_equal_one_process", "wan", "ring", UNEVEN),
        ("half_precision_stays_wide", "wan", "ring", False),
        ("gradients_without_the_factor_fail", "wan", "ulysses"),
        ("communication_is_packed", "wan"),
        ("step_equals_one_process", "wan", False, "dmd", "ulysses", "asymmetric", UNEVEN, 1, 2),
        ("step_equals_one_process", "cosmos", True, "scm", "ring", "asymmetric", UNEVEN, 1, 2),
        ("step_equals_one_process", "wan", True, "dcm", "ring", "block", UNEVEN, 1, 2),
    )


def test_a_mask_is_refused():
    q = torch.zeros(1, 1, 2, 4)
    share = TokenShare(ContextGroup(None, "ring"), 4)
    with pytest.raises(ValueError, match="no mask"):
        ops.attention(q, q, q, mask="causal", share=share)


def test_one_process_runs_the_same_code(tmp_path):
    run_on_ranks(
        1,
        tmp_path,
        context_ranks,
        ("step_equals_one_process", "wan", False, "scm", "ulysses", "asymmetric", EVEN, 1, 1),
    )


@pytest.mark.long
def test_every_network(tmp_path):
    cases = [
        ("network_equals_one_process", *case)
        for case in itertools.product(FAMILIES, KINDS, MODES, (EVEN, UNEVEN, SCARCE))
    ]
    plain = [("plain_passes_equal_one_process", *case) for case in itertools.product(FAMILIES, KINDS, (UNEVEN, SCARCE))]
    packed = [("communication_is_packed", family) for family in FAMILIES]
    faulty = [("gradients_without_the_factor_fail", *case) for case in itertools.product(FAMILIES, KINDS)]
    for ranks in (2, 4):
        (tmp_path / str(ranks)).mkdir()
        run_on_ranks(ranks, tmp_path / str(ranks), context_ranks, *cases, *plain, *packed, *faulty)


@pytest.mark.long
def test_half_precision(tmp_path):
    cases = itertools.product(FAMILIES, KINDS, (False, True))
    run_on_ranks(2, tmp_path, context_ranks, *(("half_precision_stays_wide", *case) for case in cases))


@pytest.mark.long
@pytest.mark.parametrize(
    ("ranks", "shards", "contexts"),
    [(2, 1, 2), (4, 1, 4), (4, 2, 2), (4, 1, 2), (4, 4, 1), (4, 2, 1), (4, 1, 1)],
    ids=lambda size: str(size),
)
def test_every_step(tmp_path, ranks, shards, contexts):
    """FSDP2 x context, HSDP x context and without context; a latent of uneven token count."""
    kinds = KINDS if contexts > 1 else ("ulysses",)
    run_on_ranks(
        ranks,
        tmp_path,
        context_ranks,
        *(
            ("step_equals_one_process", family, lora, step, kind, "asymmetric", UNEVEN, shards, contexts)
            for family, lora, step, kind in itertools.product(FAMILIES, (False, True), STEPS, kinds)
        ),
    )
