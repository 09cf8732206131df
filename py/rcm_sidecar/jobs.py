"""Jobs: what `run.start` asks for, from the message to its end. Runs on the main thread; errors propagate."""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path

import msgspec

from rcm_sidecar.build_job import run_build
from rcm_sidecar.checkpoints.training_state import load_checkpoint
from rcm_sidecar.config import RunConfig, config_document, parse_config
from rcm_sidecar.data import statistics_warning
from rcm_sidecar.distributed.job_team import JobTeam
from rcm_sidecar.distributed.launch import RankLine, following, leading
from rcm_sidecar.dual.attention import choose_kernels
from rcm_sidecar.encode_job import run_encode
from rcm_sidecar.fetch_job import run_fetch
from rcm_sidecar.link import Cancel, JobCancelled, JobLink, SilentLink
from rcm_sidecar.protocol import (
    BuildStart,
    DistillStart,
    EncodeStart,
    EndBody,
    FetchStart,
    RenderStart,
    RunStart,
    SampleStart,
    TrainingStart,
    WeightsStart,
)
from rcm_sidecar.render_job import run_render
from rcm_sidecar.sample_job import run_sample
from rcm_sidecar.training.determinism import set_up
from rcm_sidecar.training.loop import TrainingLoop, check_data, check_drift
from rcm_sidecar.training.products import Products
from rcm_sidecar.training.setup import Trained, set_up_distillation, set_up_pretraining
from rcm_sidecar.training.tangent_gate import report_tangent
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
    if isinstance(start, RenderStart):
        return run_render(start, link)
    if isinstance(start, WeightsStart):
        return run_weights(start, link)
    if isinstance(start, FetchStart):
        return run_fetch(start, link)
    if isinstance(start, BuildStart):
        return run_build(start, link)
    if isinstance(start, EncodeStart):
        return run_encode(start, link)
    link.activity("loading", 0)
    config = parse_config(start.config)
    with leading(start, config.compute, link) as team:
        return _train(start, config, link, team)


def follow_training(line: RankLine) -> None:
    """Take part in a training job that rank 0 leads; returns when it ends.

    Raises:
        SidecarError: as `run_job`.
        JobCancelled: as `run_job`.
    """
    config = parse_config(line.start.config)
    with following(line, config.compute) as team:
        _train(line.start, config, SilentLink(), team)


def _train(start: TrainingStart, config: RunConfig, link: JobLink, team: JobTeam) -> EndBody:
    """What every process of a job does."""
    resumed = None if start.resume_from is None else load_checkpoint(Path(start.resume_from), team)
    own_threads = max(1, config.compute.threads // config.compute.gpus_per_node)
    threads = own_threads if resumed is None else resumed[1].environment.threads
    environment = set_up(threads, config.compute.deterministic, team.sizes, team.device)
    choose_kernels(config.compute.attention)
    if resumed is not None:
        check_drift(resumed[1], environment, start.allow_drift, link)
    # A run that goes on with the kernels it was checked with needs no second check.
    unchecked = resumed is None or environment.has_other_kernels(resumed[1].environment)
    check = team.tell(config.health.teacher_check and unchecked)
    trained = _set_up(start, config, check, team)
    with closing(trained.data):
        _report_start(config, trained, link)
        products = Products(start, config, trained, link)
        loop = TrainingLoop(start, config, trained, products, environment, config_hash(config), link)
        if resumed is not None:
            check_data(resumed[0], trained.data, start.allow_drift, link)
            loop.resume(resumed[0], Path(start.resume_from or ""))
            if resumed[1].config_hash != loop.config_hash:
                link.log("info", "The config is not the one the checkpoint was written with.")
        if check and isinstance(start, DistillStart):
            report_tangent(config, trained, link)
        trained.trainer.check = lambda: _abandon_step(link)
        return loop.run()


def _report_start(config: RunConfig, trained: Trained, link: JobLink) -> None:
    """What people should know before the first step; a cancel that has come by now ends the job here."""
    team = trained.team
    warning = statistics_warning(trained.data.statistics()) if team.leads else None
    if warning is not None:
        link.log("warn", warning)
    if config.teacher.branches == "auto" and trained.branches is not None and team.device.type != "cpu":
        link.log("info", f"teacher.branches is {trained.branches}: what auto became for this micro-batch.")
    team.alone(link.requests.raise_if_cancelled_now)


def _set_up(start: TrainingStart, config: RunConfig, check: bool, team: JobTeam) -> Trained:
    if isinstance(start, DistillStart):
        return set_up_distillation(config, check, team, Path(start.cache_dir))
    return set_up_pretraining(config, team)


def config_hash(config: RunConfig) -> str:
    """sha256 of the config, as stored in checkpoints."""
    return hashlib.sha256(msgspec.json.encode(config_document(config), order="sorted")).hexdigest()


def _abandon_step(link: JobLink) -> None:
    """A cancel without a checkpoint need not wait for the end of a step; the other processes are ended then."""
    cancel: Cancel | None = link.requests.cancelled()
    if cancel is not None and not cancel.checkpoint:
        raise JobCancelled(cancel)
