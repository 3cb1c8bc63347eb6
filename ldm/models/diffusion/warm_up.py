"""`train_further`: ordinary training of a latent diffusion model on generated latents in place of records."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.errors import UserError
from ldm.models.diffusion.timesteps import TimestepRule
from ldm.modules.ema import LitEma

logger = logging.getLogger(__name__)

#: (B, generator) -> scaled latents (B, z, h, w) and labels (B,) int64.
Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class FurtherTraining:
    """The training schedule: Adam with linear warm-up over ``ramp`` steps and a cosine decay to 0.

    ``first_timestep``: timesteps below it are not trained, which keeps the fine detail of the public model.
    ``weight_limit``: the loss on the noise is multiplied by 1 / ᾱ_t, at most by this, and by 1 without it. That is the
    loss of v-prediction (Salimans and Ho 2022, section 4), under which the noisy timesteps, where a sample's class is
    decided, count as much as the others; a short training hardly learns them otherwise. Above 1 it takes the place of
    the model's own ``timestep_weights``, which are for the private steps.
    ``ema_power``: exponent of the power-function EMA that gives the final weights (Karras et al. 2024, section 3.1); a
    larger exponent averages over fewer steps. ``seed``: public seed of latents, timesteps and noise. Raises UserError
    for values out of range.
    """

    steps: int
    batch_size: int = 256
    learning_rate: float = 1e-3
    ramp: int = 20
    ema_power: float = 6.0
    first_timestep: int = 0
    weight_limit: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("batch_size", 1), ("ramp", 0), ("first_timestep", 0), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"{name}: {value!r} is no whole number of at least {least}")
        if not self.learning_rate > 0 or not self.ema_power > 0:
            raise UserError(f"learning_rate {self.learning_rate} and ema_power {self.ema_power} must be positive")
        if not 1 <= self.weight_limit < math.inf:
            raise UserError(f"weight_limit {self.weight_limit} must be a number of at least 1, which weights nothing")

    def weights(self, levels: Tensor) -> Tensor:
        """The loss weights of timesteps (T,) with the signal levels ᾱ (T,) in (0, 1]."""
        return levels.reciprocal().clamp(max=self.weight_limit)

    def rate(self, step: int) -> float:
        """The factor of the learning rate at a step, counted from 0."""
        if step < self.ramp:
            return (step + 1) / self.ramp
        return 0.5 * (1 + math.cos(math.pi * (step - self.ramp) / max(self.steps - self.ramp, 1)))


def train_further(model: Any, draw: Draw, how: FurtherTraining, progress: bool = True) -> None:
    """Train the whole network, and a trainable condition stage, on latents of ``draw``; the EMA becomes the weights.

    Frozen parameters are trained too and are frozen again afterwards. The model's own EMA restarts from the result. The
    state of torch's global generators is unchanged. Raises UserError when the loss is not finite, and for a
    weight limit with a network that does not predict the noise.
    """
    if how.first_timestep >= model.num_timesteps:
        raise UserError(f"first_timestep {how.first_timestep} is not below the {model.num_timesteps} timesteps")
    if how.weight_limit > 1 and model.parameterization != "eps":
        raise UserError(
            f"weight_limit is for networks that predict the noise; this one predicts {model.parameterization}"
        )
    modules = [model.model]
    if model.cond_stage_model is not None and model.cond_stage_trainable:
        modules.append(model.cond_stage_model)
    parts = torch.nn.ModuleList(modules)
    frozen = {parameter: parameter.requires_grad for parameter in parts.parameters()}
    was_training = model.training
    parts.requires_grad_(True)
    model.train()
    started, rule = time.monotonic(), model.timesteps
    if how.weight_limit > 1:
        model.timesteps = TimestepRule(model.num_timesteps)
    try:
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(how.seed)
            _steps(model, parts, draw, how, progress)
    finally:
        model.timesteps = rule
    for parameter, wanted in frozen.items():
        parameter.requires_grad_(wanted)
        parameter.grad = None
    model.train(was_training)
    if model.use_ema:
        model.model_ema.reset(model.model)
    logger.info("%d ordinary steps on drawn latents in %.0f s", how.steps, time.monotonic() - started)


def _steps(model: Any, parts: torch.nn.Module, draw: Draw, how: FurtherTraining, progress: bool) -> None:
    generator = torch.Generator().manual_seed(how.seed)
    average = LitEma(parts, power=how.ema_power)
    optimizer = torch.optim.Adam(parts.parameters(), lr=how.learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, how.rate)
    weights, loss = how.weights(model.alphas_cumprod), torch.zeros(())
    for step in tqdm(range(how.steps), desc="warm-up", unit="step", disable=not progress):
        latents, labels = draw(how.batch_size, generator)
        latents, labels = latents.to(model.device, torch.float32), labels.to(model.device)
        condition = model.raw_condition({"class_label": labels})
        if condition is not None:
            condition = model.get_learned_conditioning(condition)
        timesteps = torch.randint(how.first_timestep, model.num_timesteps, (len(latents),), device=model.device)
        losses = model.loss_terms(latents, timesteps, torch.randn_like(latents), condition)["loss"]
        loss = (losses * weights[timesteps]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        average(parts)
        if step % 50 == 49 and not math.isfinite(float(loss.detach())):
            raise UserError(f"the warm-up diverged at step {step + 1}; lower its learning_rate")
    average.copy_to(parts)
