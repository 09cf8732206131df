"""Jobs: what `run.start` asks for, from the message to its end. Runs on the main thread; errors propagate."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from rcm_sidecar.checkpoints.training_state import Manifest, StoredState, load_checkpoint
from rcm_sidecar.config import RunConfig, config_document, parse_config
from rcm_sidecar.data import statistics_warning
from rcm_sidecar.dual.attention import choose_kernels
from rcm_sidecar.fetch_job import run_fetch
from rcm_sidecar.link import Cancel, JobCancelled, JobLink
from rcm_sidecar.protocol import DistillStart, EndBody, FetchStart, RunStart, SampleStart, TrainingStart, WeightsStart
from rcm_sidecar.sample_job import run_sample
from rcm_sidecar.training.determinism import set_up
from rcm_sidecar.training.loop import TrainingLoop, check_drift
from rcm_sidecar.training.products import Products
from rcm_sidecar.training.setup import Trained, set_up_distillation, set_up_pretraining
from rcm_sidecar.weights_job import run_weights


def run_job(start: RunStart, link: JobLink) -> EndBody:
    """Run a job to its end.

    Args:
        start: What to do.
        link: Where to report, and where requests come from.

    Returns:
        How it ended: succeeded, or stopped by a cancel.

    Raises:
        SidecarError: with the code of what went wrong.
        JobCancelled: a cancel arrived before training began.
    """
    if isinstance(start, SampleStart):
        return run_sample(start, link)
    if isinstance(start, WeightsStart):
        return run_weights(start, link)
    if isinstance(start, FetchStart):
        return run_fetch(start, link)
    return _run_training(start, link)


def _run_training(start: TrainingStart, link: JobLink) -> EndBody:
    link.activity("loading", 0)
    config = parse_config(start.config)
    resumed = None if start.resume_from is None else load_checkpoint(Path(start.resume_from))
    threads = config.compute.threads if resumed is None else resumed[1].environment.threads
    environment = set_up(config.compute.device, threads, config.compute.deterministic)
    choose_kernels(config.compute.attention)
    if resumed is not None:
        check_drift(resumed[1], environment, start.allow_drift, link)
    trained = _set_up(start, config, resumed)
    warning = statistics_warning(trained.data.statistics())
    if warning is not None:
        link.log("warn", warning)
    link.requests.raise_if_cancelled_now()
    products = Products(start, config, trained, link)
    loop = TrainingLoop(start, config, trained, products, environment, config_hash(config), link)
    if resumed is not None:
        loop.resume(resumed[0], Path(start.resume_from or ""))
        if resumed[1].config_hash != loop.config_hash:
            link.log("info", "The config is not the one the checkpoint was written with.")
    trained.trainer.check = lambda: _abandon_step(link)
    return loop.run()


def _set_up(start: TrainingStart, config: RunConfig, resumed: tuple[StoredState, Manifest] | None) -> Trained:
    if isinstance(start, DistillStart):
        # A resumed run was checked when it began, and its student is no copy of the teacher any more.
        return set_up_distillation(config, check=config.health.teacher_check and resumed is None)
    return set_up_pretraining(config)


def config_hash(config: RunConfig) -> str:
    """sha256 of the config, as stored in checkpoints."""
    return hashlib.sha256(msgspec.json.encode(config_document(config), order="sorted")).hexdigest()


def _abandon_step(link: JobLink) -> None:
    """A cancel without a checkpoint need not wait for the end of a step."""
    cancel: Cancel | None = link.requests.cancelled()
    if cancel is not None and not cancel.checkpoint:
        raise JobCancelled(cancel)
