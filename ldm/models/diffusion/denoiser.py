"""`Denoiser`: a diffusion model with its training loss, in pixel or latent space; no trainer is needed or imported."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.checkpoint import (
    check_metadata,
    ema_to_parameters,
    inherited_privacy,
    load_weights,
    read_checkpoint,
    unprotected_data,
)
from ldm.checkpoint.tensors import is_rounded
from ldm.errors import UserError
from ldm.models.diffusion.ancestral import p_sample_loop, progressive_denoising
from ldm.models.diffusion.conditioning import DiffusionWrapper
from ldm.models.diffusion.forward_process import ForwardProcess
from ldm.models.diffusion.schedule import BUFFERS
from ldm.modules.ema import LitEma

logger = logging.getLogger(__name__)


class Denoiser(ForwardProcess):
    """Denoising diffusion with a Gaussian forward process (Ho et al. 2020), in pixel space.

    The constructor's names, the state-dict keys and the buffers are those of the latent-diffusion lineage.
    Images and noise are (B, C, H, W), timesteps (B,) int64 in [0, T).

    Args:
        ema_power: exponent of a power-function average in place of ema_decay's, >= 0, about 6; see `LitEma`.
        unet_config: section of the denoising network.
        timesteps: number T of diffusion steps.
        beta_schedule: noise schedule: linear, cosine, sqrt_linear or sqrt.
        loss_type: l2 (squared) or l1 (absolute) error.
        ckpt_path: checkpoint that the weights start from.
        ignore_keys: prefixes of keys that are not loaded from it.
        load_only_unet: load the denoising network from it and nothing else.
        monitor: logged metric that selects the best checkpoint; private runs use none.
        use_ema: keep a running average of the network's weights, which sampling uses.
        first_stage_key: entry of a batch that holds the images.
        image_size: side of the diffused image or latent, in pixels or latent cells.
        channels: channels of the diffused image or latent.
        log_every_t: timesteps between the intermediate images that are logged.
        clip_denoised: clip estimates of x_0 to [-1, 1] when sampling, in pixel space.
        linear_start: first beta of the linear schedules.
        linear_end: last beta of the linear schedules.
        cosine_s: offset of the cosine schedule.
        given_betas: the T betas themselves, in place of a schedule.
        original_elbo_weight: weight of the variational bound in the loss.
        v_posterior: posterior variance between its lower bound (0) and beta (1).
        l_simple_weight: weight of the simple loss.
        conditioning_key: how the network takes the condition: concat, crossattn, hybrid, adm, or null for none.
        parameterization: prediction target of the network: eps (the noise) or x0 (the image).
        scheduler_config: section of the learning-rate schedule, applied every step.
        learn_logvar: learn a log-variance of the loss for every timestep.
        logvar_init: the starting value of these log-variances.
        ema_decay: decay rate of the running average, in [0, 1).
        start_from_ema: start from the checkpoint's averaged weights when it has them.
    """

    logvar: Tensor
    #: Plan and ledger of the private run that produced the initial weights, if there was one.
    start_privacy: Any = None
    #: Digests of the known data sets on which the initial weights were trained without privacy.
    unprotected_data: tuple[str, ...] = ()

    def __init__(
        self,
        unet_config: Any,
        timesteps: int = 1000,
        beta_schedule: str = "linear",
        loss_type: str = "l2",
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        load_only_unet: bool = False,
        monitor: str | None = "val/loss",
        use_ema: bool = True,
        first_stage_key: str = "image",
        image_size: int = 256,
        channels: int = 3,
        log_every_t: int = 100,
        clip_denoised: bool = True,
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
        given_betas: Sequence[float] | None = None,
        original_elbo_weight: float = 0.0,
        v_posterior: float = 0.0,
        l_simple_weight: float = 1.0,
        conditioning_key: str | None = None,
        parameterization: str = "eps",
        scheduler_config: Any = None,
        learn_logvar: bool = False,
        logvar_init: float = 0.0,
        ema_decay: float = 0.9999,
        start_from_ema: bool = True,
        ema_power: float | None = None,
    ):
        super().__init__()
        _check_choice("parameterization", parameterization, ("eps", "x0"))
        _check_choice("loss_type", loss_type, ("l1", "l2"))
        self.parameterization = parameterization
        self.loss_type = loss_type
        self.cond_stage_model: nn.Module | None = None
        self.clip_denoised = clip_denoised
        self.log_every_t = log_every_t
        self.first_stage_key = first_stage_key
        self.image_size = image_size
        self.channels = channels
        self.v_posterior = v_posterior
        self.original_elbo_weight = original_elbo_weight
        self.l_simple_weight = l_simple_weight
        self.monitor = monitor
        self.scheduler_config = scheduler_config
        self.start_from_ema = start_from_ema
        self.learning_rate = 1e-4  # the driver replaces it by the computed rate
        self.model = DiffusionWrapper(unet_config, conditioning_key)
        self.unet_params = dict(unet_config.get("params") or {})
        self.use_ema = use_ema
        if use_ema:
            self.model_ema = LitEma(self.model, decay=ema_decay, power=ema_power)
        self._register_schedule(beta_schedule, timesteps, linear_start, linear_end, cosine_s, given_betas)
        self._register_logvar(learn_logvar, logvar_init)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys, only_model=load_only_unet)

    def _register_logvar(self, learn: bool, start: float) -> None:
        self.learn_logvar = learn
        logvar = torch.full((self.num_timesteps,), float(start))
        if learn:
            self.logvar = nn.Parameter(logvar)
        else:
            self.register_buffer("logvar", logvar, persistent=False)

    def init_from_ckpt(
        self, path: str, ignore_keys: Sequence[str] = (), only_model: bool = False, fresh_adapters: bool = False
    ) -> None:
        """Load weights from a checkpoint file; keys with a prefix of ``ignore_keys`` keep their fresh values.

        The network starts from the checkpoint's averaged (EMA) weights when it has them, unless
        ``start_from_ema`` is off; the running average then starts at exactly the weights that are loaded, so the
        frozen part is the same in training and in sampling. With ``fresh_adapters`` the checkpoint may lack the
        adapters of the model. Raises UserError on any other mismatch.
        """
        checkpoint = read_checkpoint(path)
        state = dict(checkpoint["state_dict"])
        check_metadata(self, checkpoint, path)
        self.start_privacy = inherited_privacy(checkpoint)
        self.unprotected_data = unprotected_data(checkpoint)
        absent: tuple[str, ...] = ()
        if only_model:
            state = {key: value for key, value in state.items() if key.startswith(("model.", "model_ema."))}
            absent = tuple(key for key in self.state_dict() if not key.startswith("model."))
        self.load_lineage_state(state, ignore_keys, str(path), absent, fresh_adapters)
        logger.info("weights of %s loaded", path)

    def load_lineage_state(
        self,
        state: Mapping[str, Tensor],
        ignore: Sequence[str] = (),
        source: str = "",
        absent: Sequence[str] = (),
        fresh_adapters: bool = False,
    ) -> None:
        """Load a whole state dict: EMA and raw weights, schedule checked, loss networks of the first stage dropped.

        Keys with a prefix in ``ignore`` keep the model's values. Keys with a prefix in ``absent`` may be missing from
        the state dict, and with ``fresh_adapters`` adapter tensors may be missing too. ``source`` names the file in
        errors.
        """
        state, without = self.adapt_state(state, source, fresh_adapters)
        self._check_schedule(state, source)
        # a half-precision file holds rounded schedule constants; keep the model's exact ones
        state = {key: value for key, value in state.items() if key not in BUFFERS or not is_rounded(value)}
        try:
            averaged = ema_to_parameters(self.model, state) if self.start_from_ema else {}
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
        if averaged:
            logger.info("%s: starting from the averaged (EMA) weights", source)
            state.update({f"model.{name}": value for name, value in averaged.items()})
        unused = ("model_ema.", "lvlb_weights", *self.unused_prefixes())
        dropped = (*(prefix for prefix in unused if any(key.startswith(prefix) for key in state)), *ignore)
        own = tuple(name for name, _ in self.named_buffers() if name in ("scale_factor", "logvar"))
        load_weights(
            self,
            state,
            ignore=dropped,
            allow_missing=(*unused, *BUFFERS, *own, *ignore, *absent, *without),
            source=source,
        )
        if self.use_ema:
            self.model_ema.reset(self.model)

    def adapt_state(
        self, state: Mapping[str, Tensor], source: str, fresh_adapters: bool
    ) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """A checkpoint's state dict under this model's names, and the keys of the model that it may lack."""
        return dict(state), ()

    def unused_prefixes(self) -> tuple[str, ...]:
        """Prefixes of keys in a lineage checkpoint that this model does not use."""
        return () if self.learn_logvar else ("logvar",)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.betas.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (C, h, w) of what is diffused: the latent of one image, or the image itself without a first stage."""
        return self.channels, self.image_size, self.image_size

    @contextmanager
    def ema_scope(self, context: str | None = None) -> Iterator[None]:
        """Run the body with the averaged weights in place of the trained ones (no effect without EMA)."""
        if not self.use_ema:
            yield
            return
        with self.model_ema.swapped(self.model):
            yield

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """Run the network on x_t; ``cond`` is None in pixel space."""
        return self.model(x_noisy, t)

    def p_sample_loop(self, cond: Any, shape: Sequence[int], **options: Any) -> Any:
        """Ancestral sampling of images of ``shape`` (B, C, H, W); see `ldm.models.diffusion.ancestral.p_sample_loop`.

        ``cond`` is an encoded condition of B records, or None.
        """
        return p_sample_loop(self, cond, shape, **options)

    def progressive_denoising(self, cond: Any, shape: Sequence[int], **options: Any) -> Any:
        """Ancestral sampling that keeps the x_0 estimates; see `ldm.models.diffusion.ancestral`."""
        return progressive_denoising(self, cond, shape, **options)

    def get_loss(self, pred: Tensor, target: Tensor, mean: bool = True) -> Tensor:
        """Absolute (l1) or squared (l2) error, averaged over everything or left elementwise."""
        error = (target - pred).abs() if self.loss_type == "l1" else F.mse_loss(pred, target, reduction="none")
        return error.mean() if mean else error

    def loss_terms(self, x_start: Tensor, t: Tensor, noise: Tensor, cond: Any = None) -> dict[str, Tensor]:
        """The loss of every example and its parts, each (B,): ``simple``, ``gamma``, ``vlb`` and their sum ``loss``.

        No example influences another one, so per-record gradients are well defined.
        Source: Ho et al. 2020, equation 14; the learned log-variance is the lineage's extension.
        """
        output = self.apply_model(self.q_sample(x_start, t, noise), t, cond)
        target = noise if self.parameterization == "eps" else x_start
        simple = self.get_loss(output, target, mean=False).flatten(1).mean(dim=1)
        logvar = self.logvar[t]
        gamma = simple / torch.exp(logvar) + logvar
        vlb = self.lvlb_weights[t] * simple
        loss = self.l_simple_weight * gamma + self.original_elbo_weight * vlb
        return {"simple": simple, "gamma": gamma, "vlb": vlb, "loss": loss}

    def p_losses(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of a batch, and metrics to log."""
        noise = torch.randn_like(x_start) if noise is None else noise
        return self._summarise(self.loss_terms(x_start, t, noise))

    def _summarise(self, terms: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        prefix = "train" if self.training else "val"
        loss = terms["loss"].mean()
        report = {f"{prefix}/loss_simple": terms["simple"].mean(), f"{prefix}/loss_vlb": terms["vlb"].mean()}
        if self.learn_logvar:
            report[f"{prefix}/loss_gamma"] = terms["gamma"].mean()
            report["logvar"] = self.logvar.detach().mean()
        report[f"{prefix}/loss"] = loss
        return loss, report

    def draw_timesteps(self, count: int) -> Tensor:
        """Uniform timesteps (count,) int64 in [0, T)."""
        return torch.randint(0, self.num_timesteps, (count,), device=self.device)

    def get_input(self, batch: Mapping[str, Any], key: str) -> Tensor:
        """Images (B, H, W, C) or (B, H, W) of a batch as contiguous float (B, C, H, W)."""
        images = batch[key]
        if images.ndim == 3:
            images = images[..., None]
        return rearrange(images, "b h w c -> b c h w").contiguous().float()

    def shared_step(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch from the data loader, and metrics to log."""
        x = self.get_input(batch, self.first_stage_key)
        return self.p_losses(x, self.draw_timesteps(len(x)))

    def average_weights(self) -> None:
        """Update the running average (EMA) after an optimizer step."""
        if self.use_ema:
            self.model_ema(self.model)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name."""
        named = {f"model.{name}": parameter for name, parameter in self.model.named_parameters()}
        if isinstance(self.logvar, nn.Parameter):
            named["logvar"] = self.logvar
        return named


def count_records(batch: Mapping[str, Any]) -> int:
    """Number of records in a collated batch."""
    return len(next(iter(batch.values())))


def _check_choice(option: str, value: str, known: tuple[str, str]) -> None:
    if value not in known:
        raise UserError(f"{option}: {value!r} is unknown; choose {known[0]} or {known[1]}")
