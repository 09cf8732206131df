"""Training of a small teacher by flow matching (rcm-method section 11)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rcm_sidecar.config import RunConfig
from rcm_sidecar.data import LabelConditioner, TrainingData
from rcm_sidecar.diffusion.coordinates import compute_dtype, noisy_state, trig_point
from rcm_sidecar.diffusion.guidance import Network
from rcm_sidecar.distributed.job_team import ALONE, JobTeam
from rcm_sidecar.methods.loss import Loss, norm_per_sample, sum_per_sample
from rcm_sidecar.step_clock import timed
from rcm_sidecar.training.draws import Draws
from rcm_sidecar.training.phases import take
from rcm_sidecar.training.randomness import generator
from rcm_sidecar.training.trainer import Term, Work

_SCALARS = {"flow/loss": "loss"}


def flow_matching_loss(
    network: Network, x0: Tensor, noise: Tensor, u: Tensor, *, text: Tensor, time_scale: float
) -> Loss:
    """Mean over elements of (v - (e - x0))^2 at TrigFlow times u [B]; 2.0 for v = 0 on standardised data.

    Args:
        network: Velocity network f(x, t, text) that learns.
        x0: Clean data [B, ...].
        noise: e [B, ...].
        u: TrigFlow times [B].
        text: Condition [B, L, D]; gradients flow into it.
        time_scale: The network's time is time_scale * t.

    Returns:
        Loss; `per_sample` is a mean, not a sum, over a sample's elements. Scalars: `loss`, `grad_norm`.
    """
    point = trig_point(u, x0)
    velocity = network(noisy_state(x0, noise, point), point.network_time(time_scale), text).to(compute_dtype(x0))
    residual = velocity - (noise - x0)
    elements = residual[0].numel()
    per_sample = sum_per_sample(residual.square()) / elements
    total = per_sample.mean()
    grad_norm = (2 * norm_per_sample(residual) / elements).mean()
    return Loss(total, per_sample, {"loss": total.detach().double(), "grad_norm": grad_norm})


@dataclass(frozen=True)
class PretrainingPlan:
    """The plan of a pretraining: every step updates the teacher and its conditioner.

    Attributes:
        config: Seed and `pretrain` block.
        network: The teacher.
        conditioner: Label table that learns with it.
        data: Latents and labels by position.
        time_scale: Of the network.
        team: The processes that share a batch.
    """

    config: RunConfig
    network: Network
    conditioner: LabelConditioner
    data: TrainingData
    time_scale: float
    team: JobTeam = ALONE

    def __call__(self, step: int, updates: Mapping[str, int]) -> Work:
        """The work of `step` (from 0)."""
        settings, seed = self.config.pretrain, self.config.seed
        size, device = settings.batch_size, self.team.device
        share = self.team.own(size)
        batch, values = take(self.data, step, size, share, seed)
        batch = replace(batch, condition=self._dropped(batch.condition, step, size, share))
        latents, labels = batch.latents.to(device), batch.condition.to(device)
        draws = Draws(seed, step, size, share, self.data.latent_shape)
        noise = draws.noise("flow/noise").to(latents)
        u = draws.times("flow/time", settings.time_distribution).to(device)
        network = timed("forward", self.network)

        def loss(chosen: slice) -> Loss:
            text = self.conditioner(labels[chosen])
            return flow_matching_loss(
                network, latents[chosen], noise[chosen], u[chosen], text=text, time_scale=self.time_scale
            )

        term = Term("flow", u, loss, _SCALARS)
        return Work("teacher", "teacher", (term,), len(labels), batch.tensors, share.start, values)

    def _dropped(self, labels: Tensor, step: int, size: int, share: slice) -> Tensor:
        """Labels of which a share is replaced by the empty one, so that guidance has a negative branch."""
        coin = torch.rand(size, generator=generator(self.config.seed, step, "flow/label-dropout"))[share]
        return torch.where(coin < self.config.pretrain.label_dropout, self.conditioner.num_classes, labels)
