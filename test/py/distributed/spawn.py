"""Gloo processes for the tests of this folder."""

from __future__ import annotations

import importlib
import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

LIMIT_SECONDS = 300


def run_on_ranks(ranks, folder, module, *scenarios, limit_seconds=LIMIT_SECONDS):
    """Run scenarios in `ranks` processes, all ended in any case; a failure there fails here.

    A scenario is the name of a function in `module` and its arguments.
    """
    context = mp.start_processes(
        _run, args=(ranks, str(folder), module.__name__, scenarios), nprocs=ranks, join=False, start_method="spawn"
    )
    deadline = time.monotonic() + limit_seconds
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < deadline, f"the {ranks} processes did not end"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
            process.join()


def _run(rank, ranks, folder, module, scenarios):
    """One process: every scenario in turn."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )
    for name, *arguments in scenarios:
        getattr(importlib.import_module(module), name)(*arguments)
    dist.barrier()
    # gloo's own threads can still run while the interpreter takes itself apart, and then abort a process that has
    # finished its work (seen once in about twenty runs). A failed scenario has raised before this line.
    os._exit(0)
