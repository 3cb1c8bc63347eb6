"""`LatentDiffusion`: the diffusion model in the latent space of a frozen autoencoder, with conditions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.config import instantiate_from_config
from ldm.errors import UserError, nearest
from ldm.models.diffusion.adapters import AdapterPlan, merge_dpdm_k, to_model_names
from ldm.models.diffusion.ddpm_base import DDPM, DiffusionWrapper
from ldm.models.diffusion.finetuning import FineTuning, Selection
from ldm.models.diffusion.log_images import log_images
from ldm.models.diffusion.private_training import PrivateTraining
from ldm.models.diffusion.timesteps import TimestepRule
from ldm.modules.adam_bc import AdamBC
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution

__all__ = ["DDPM", "DiffusionWrapper", "LatentDiffusion"]

logger = logging.getLogger(__name__)

RAW_CONDITION_KEYS = ("caption", "coordinates_bbox")


class LatentDiffusion(DDPM):
    """Latent diffusion (Rombach et al. 2022) with the fine-tuning switches of DP-LDM.

    A batch holds images (B, H, W, C) under ``first_stage_key``, or ``moments`` (B, 2z, h, w) when its latents were
    cached, and the condition under ``cond_stage_key``. Latents are (B, z, h, w), scaled by ``scale_factor``.
    """

    def __init__(
        self,
        first_stage_config: Any,
        cond_stage_config: Any,
        num_timesteps_cond: int | None = None,
        cond_stage_key: str = "image",
        cond_stage_trainable: bool = False,
        concat_mode: bool = True,
        cond_stage_forward: str | None = None,
        conditioning_key: str | None = None,
        scale_factor: float = 1.0,
        scale_by_std: bool = False,
        retrain_attention: bool = False,
        train_attention_only: bool = False,
        attention_flag: str = "spatial",
        train_condition_only: bool = False,
        train_input_blocks_only: bool = False,
        train_resblocks_only: bool = False,
        ablation_blocks: int = -1,
        train_dead_parameters: bool = False,
        use_lora: bool = False,
        use_model_lora: bool = False,
        model_lora_r: int = 8,
        model_lora_alpha: float | None = None,
        model_lora_target: Sequence[str] = (),
        model_lora_init: str = "gaussian",
        model_lora_scaling: str = "standard",
        model_lora_rank_schedule: Mapping[str, Any] | None = None,
        use_cond_lora: bool = False,
        cond_lora_r: int = 8,
        cond_lora_target: Sequence[str] = (),
        DPDM_k: int = 1,
        dp_config: Mapping[str, Any] | None = None,
        optimizer_config: Mapping[str, Any] | None = None,
        unet_config: Any = None,
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
        clip_denoised: bool = False,
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
        given_betas: Sequence[float] | None = None,
        original_elbo_weight: float = 0.0,
        v_posterior: float = 0.0,
        l_simple_weight: float = 1.0,
        parameterization: str = "eps",
        scheduler_config: Any = None,
        use_positional_encodings: bool = False,
        learn_logvar: bool = False,
        logvar_init: float = 0.0,
        ema_decay: float = 0.9999,
        start_from_ema: bool = True,
        ema_power: float | None = None,
        timestep_weights: Mapping[str, Sequence[float]] | None = None,
        timestep_sampling: Mapping[str, Sequence[float]] | None = None,
    ):
        if num_timesteps_cond not in (None, 1):
            raise UserError(f"num_timesteps_cond: only 1 is supported, not {num_timesteps_cond}")
        if conditioning_key is None:
            conditioning_key = "concat" if concat_mode else "crossattn"
        if cond_stage_config == "__is_unconditional__":
            conditioning_key = None
        adapters = AdapterPlan.read(
            use_lora=use_lora,
            use_model_lora=use_model_lora,
            model_lora_r=model_lora_r,
            model_lora_alpha=model_lora_alpha,
            model_lora_target=model_lora_target,
            model_lora_init=model_lora_init,
            model_lora_scaling=model_lora_scaling,
            model_lora_rank_schedule=model_lora_rank_schedule,
            use_cond_lora=use_cond_lora,
            cond_lora_r=cond_lora_r,
            cond_lora_target=cond_lora_target,
            unet_config=unet_config,
        )
        super().__init__(
            unet_config,
            timesteps=timesteps,
            beta_schedule=beta_schedule,
            loss_type=loss_type,
            monitor=monitor,
            use_ema=use_ema,
            first_stage_key=first_stage_key,
            image_size=image_size,
            channels=channels,
            log_every_t=log_every_t,
            clip_denoised=False,  # a latent has no fixed range
            linear_start=linear_start,
            linear_end=linear_end,
            cosine_s=cosine_s,
            given_betas=given_betas,
            original_elbo_weight=original_elbo_weight,
            v_posterior=v_posterior,
            l_simple_weight=l_simple_weight,
            conditioning_key=conditioning_key,
            parameterization=parameterization,
            scheduler_config=scheduler_config,
            use_positional_encodings=use_positional_encodings,
            learn_logvar=learn_logvar,
            logvar_init=logvar_init,
            ema_decay=ema_decay,
            start_from_ema=start_from_ema,
            ema_power=ema_power,
        )
        self.timesteps = TimestepRule(self.num_timesteps, timestep_weights, timestep_sampling)
        self.cond_stage_key = cond_stage_key
        self.cond_stage_trainable = cond_stage_trainable or train_condition_only or use_cond_lora
        self.cond_stage_forward = cond_stage_forward
        self.scale_by_std = scale_by_std
        if scale_by_std:
            self.register_buffer("scale_factor", torch.tensor(float(scale_factor)))
        else:
            self.scale_factor = scale_factor
        self.scale_is_known = not scale_by_std  # True once a checkpoint or the first public batch has set it
        self.fine_tuning = FineTuning.from_flags(
            condition=train_condition_only,
            attention=train_attention_only,
            input_blocks=train_input_blocks_only,
            res_blocks=train_resblocks_only,
            first_block=ablation_blocks,
            train_dead_parameters=train_dead_parameters,
            cond_stage_trainable=cond_stage_trainable,
            adapters=adapters.on_network,
            condition_adapters=adapters.condition is not None,
        )
        self.dp_config = merge_dpdm_k(dp_config, DPDM_k)
        self.optimizer_config = dict(optimizer_config or {})
        self.private: PrivateTraining | None = None
        self._first_stage_from(first_stage_config)
        self._cond_stage_from(cond_stage_config)
        self.adapter_plan = adapters
        self.adapters_may_be_fresh = True  # while it is built: what it starts from need not have any
        adapters.insert(self, ema_decay)
        if ckpt_path is not None:
            ignored = list(ignore_keys)
            if retrain_attention:
                ignored += self.fine_tuning.attention_prefixes(self, attention_flag)
            self.init_from_ckpt(ckpt_path, ignored, only_model=load_only_unet)
        self.adapters_may_be_fresh = False

    # ------------------------------------------------------------------ the parts

    def _first_stage_from(self, config: Any) -> None:
        self.first_stage_model = instantiate_from_config(config).eval()
        self.first_stage_model.requires_grad_(False)

    def _cond_stage_from(self, config: Any) -> None:
        if config == "__is_unconditional__":
            self.cond_stage_model = None
        elif config == "__is_first_stage__":
            self.cond_stage_model = self.first_stage_model
        else:
            self.cond_stage_model = instantiate_from_config(config)
            if not self.cond_stage_trainable:
                self.cond_stage_model.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> LatentDiffusion:
        """Switch modes; frozen stages stay in evaluation mode."""
        super().train(mode)
        self.first_stage_model.eval()
        if self.cond_stage_model is not None and not self.cond_stage_trainable:
            self.cond_stage_model.eval()
        return self

    def _foreign_prefixes(self, state: Mapping[str, Tensor]) -> tuple[str, ...]:
        # a released checkpoint carries the loss networks of the autoencoder (LPIPS, discriminator); sampling and
        # fine-tuning have no use for them
        foreign = ["first_stage_model.loss."]
        if not self.scale_by_std and "scale_factor" in state:
            logger.info("the checkpoint's latent scale %.5f replaces the config's", float(state["scale_factor"]))
            del self.scale_factor  # a buffer from here on, so that what is trained from it carries the scale along
            self.register_buffer("scale_factor", state["scale_factor"].detach().clone().float())
        elif self.scale_by_std and "scale_factor" in state:
            self.scale_is_known = True
        return (*super()._foreign_prefixes(state), *foreign)

    def load_lineage_state(
        self, state: Mapping[str, Tensor], ignore: Sequence[str] = (), source: str = "", absent: Sequence[str] = ()
    ) -> None:
        state, fresh = to_model_names(self, state, source)
        super().load_lineage_state(state, ignore, source, (*absent, *fresh))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.scale_is_known = True

    # ------------------------------------------------------------------ the first stage

    @torch.no_grad()
    def encode_first_stage(self, x: Tensor) -> Any:
        """Posterior (KL) or pre-quantised latents (VQ) of images (B, C, H, W)."""
        return self.first_stage_model.encode(x)

    @torch.no_grad()
    def encode_moments(self, x: Tensor) -> Tensor:
        """Unscaled posterior moments (B, 2z, h, w) of images (B, C, H, W): what a latent cache keeps.

        A first stage without a posterior gives its latents (B, z, h, w).
        """
        encoded = self.encode_first_stage(x)
        return encoded.parameters if isinstance(encoded, DiagonalGaussianDistribution) else encoded

    def get_first_stage_encoding(self, encoder_posterior: Any) -> Tensor:
        """Scaled latents drawn from a posterior, or taken as they are."""
        if isinstance(encoder_posterior, DiagonalGaussianDistribution):
            encoder_posterior = encoder_posterior.sample()
        return self.scale_factor * encoder_posterior

    @torch.no_grad()
    def latents(self, batch: Mapping[str, Any], chunk: int | None = None) -> Tensor:
        """Scaled latents of a batch, from its cached moments or by encoding its images ``chunk`` at a time."""
        if "moments" in batch:
            moments = batch["moments"].float()
        else:
            images = super().get_input(batch, self.first_stage_key)
            parts = images.split(chunk or max(1, len(images)))
            moments = torch.cat([self.encode_moments(part) for part in parts]) if len(images) else None
            if moments is None:
                return images.new_zeros(0, self.channels, self.image_size, self.image_size)
        if moments.shape[1] == 2 * self.channels:
            return self.get_first_stage_encoding(DiagonalGaussianDistribution(moments))
        return self.scale_factor * moments

    @torch.no_grad()
    def decode_first_stage(self, z: Tensor, force_not_quantize: bool = False) -> Tensor:
        """Images (B, C, H, W), nominally in [-1, 1], of scaled latents; a quantising first stage rounds them first."""
        options = {"force_not_quantize": True} if force_not_quantize else {}
        return self.first_stage_model.decode(z / self.scale_factor, **options)

    # ------------------------------------------------------------------ the condition

    def get_learned_conditioning(self, c: Any) -> Any:
        """What the network is shown of a raw condition (labels in a dict, tokens, images, ...)."""
        if self.cond_stage_forward is not None:
            return getattr(self.cond_stage_model, self.cond_stage_forward)(c)
        encode = getattr(self.cond_stage_model, "encode", None)
        encoded = encode(c) if callable(encode) else self.cond_stage_model(c)
        return encoded.mode() if isinstance(encoded, DiagonalGaussianDistribution) else encoded

    def raw_condition(self, batch: Mapping[str, Any]) -> Any:
        """The part of a batch that the condition stage reads."""
        if self.cond_stage_model is None:
            return None
        if self.cond_stage_key == "class_label":
            labels = batch["class_label"]
            drop = getattr(self.cond_stage_model, "drop", None)
            return {"class_label": drop(labels) if drop is not None and self.training else labels}
        if self.cond_stage_key in RAW_CONDITION_KEYS:
            raw, tokenize = batch[self.cond_stage_key], getattr(self.cond_stage_model, "tokenize", None)
            return raw if tokenize is None or isinstance(raw, Tensor) else tokenize(raw)  # tokens split into records
        return super().get_input(batch, self.cond_stage_key)

    def get_input(self, batch: Mapping[str, Any], key: str) -> tuple[Tensor, Any]:
        """Latents and condition of a batch; a trainable condition stage gets the raw condition, as in the lineage."""
        raw = self.raw_condition(batch)
        if raw is not None and not self.cond_stage_trainable:
            raw = self.get_learned_conditioning(raw)
        return self.latents(batch), raw

    # ------------------------------------------------------------------ network and loss

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """Run the network; ``cond`` is None, a tensor, a list of tensors, or a dict by conditioning kind."""
        if cond is None:
            cond = {}
        elif not isinstance(cond, Mapping):
            tensors = list(cond) if isinstance(cond, (list, tuple)) else [cond]
            cond = {"c_concat" if self.model.conditioning_key == "concat" else "c_crossattn": tensors}
        return self.model(x_noisy, t, **cond)

    def p_losses(
        self, x_start: Tensor, cond: Any, t: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of latents under an encoded condition, and what to log about it."""
        noise = torch.randn_like(x_start) if noise is None else noise
        return self._summarise(self.row_terms(x_start, t, noise, cond))

    def draw_timesteps(self, rows: int) -> Tensor:
        return self.timesteps.draw(rows, self.device)

    def row_terms(self, x_start: Tensor, t: Tensor, noise: Tensor, cond: Any = None) -> dict[str, Tensor]:
        terms = super().row_terms(x_start, t, noise, cond)
        return {**terms, "loss": self.timesteps.weighted(terms["loss"], t)}

    def shared_step(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        z, cond = self.get_input(batch, self.first_stage_key)
        if cond is not None and self.cond_stage_trainable:
            cond = self.get_learned_conditioning(cond)
        return self.p_losses(z, cond, self.draw_timesteps(len(z)))

    @torch.no_grad()
    def private_rows(self, batch: Mapping[str, Any], copies: int, chunk: int | None) -> dict[str, Tensor]:
        """Everything the loss of a logical batch needs, drawn once: (B*copies, ...) tensors, record-major.

        One latent a record; ``copies`` independent timesteps and noises on it (Dockhorn et al. 2023, section 3).
        """
        z = self.latents(batch, chunk).repeat_interleave(copies, dim=0)
        rows = {"z": z, "t": self.draw_timesteps(len(z)), "noise": torch.randn_like(z)}
        condition = self.raw_condition(batch)
        if condition is None:
            return rows
        if isinstance(condition, Mapping):
            rows.update({f"cond:{name}": value.repeat_interleave(copies, dim=0) for name, value in condition.items()})
        elif isinstance(condition, Tensor):
            rows["cond"] = condition.repeat_interleave(copies, dim=0)
        else:
            raise UserError(
                f"private training cannot split a condition of type {type(condition).__name__} into records"
            )
        return rows

    def row_losses(self, rows: Mapping[str, Tensor]) -> Tensor:
        """The loss of every row (B*copies,) of `private_rows`."""
        named = {key.removeprefix("cond:"): value for key, value in rows.items() if key.startswith("cond:")}
        condition: Any = named or rows.get("cond")
        if condition is not None:  # encoded here, a chunk at a time: a logical batch of encoded captions is large
            condition = self.get_learned_conditioning(condition)
        return self.row_terms(rows["z"], rows["t"], rows["noise"], condition)["loss"]

    # ------------------------------------------------------------------ training

    @property
    def dp_enabled(self) -> bool:
        """Whether the config asks for private training."""
        return bool(self.dp_config.get("enabled", False))

    def select_trainable(self) -> Selection:
        """Freeze everything that is not fine-tuned; returns what is trained and what was left out."""
        selection = self.fine_tuning.select(self, private=self.dp_enabled)
        self.requires_grad_(False)
        for parameter in selection.parameters.values():
            parameter.requires_grad_(True)
        return selection

    def setup(self, stage: str) -> None:
        # ahead of the optimizer: processes that share a run agree on the gradients to exchange before there is one
        if stage == "fit":
            self.select_trainable()

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.select_trainable().parameters)

    def build_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        options = dict(self.optimizer_options())
        name = options.pop("name", "adamw")
        if name == "adamw":
            return torch.optim.AdamW(parameters, lr=self.learning_rate, **options)
        if name != "adam_bc":
            raise UserError(f"optimizer_config.name: {name!r} is unknown{nearest(str(name), ('adamw', 'adam_bc'))}")
        variance = 0.0 if self.private is None else self.private.plan.step_noise_variance
        return AdamBC(parameters, lr=self.learning_rate, noise_variance=variance, **options)

    def optimizer_options(self) -> dict[str, Any]:
        return self.optimizer_config

    def on_train_start(self) -> None:
        if self.dp_enabled and self.private is None:
            raise UserError("dp_config.enabled is set but no privacy plan was attached; train through main.py")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if not self.scale_is_known:
            self._scale_from_public_batch(batch)

    @torch.no_grad()
    def _scale_from_public_batch(self, batch: Mapping[str, Any]) -> None:
        if self.dp_enabled:  # the driver has said so before; nobody else may come here either
            raise UserError("scale_by_std: a statistic of private images is not covered by the guarantee")
        self.scale_factor.fill_(1.0)
        self.scale_factor.copy_(1.0 / self.latents(batch).flatten().std())
        self.scale_is_known = True
        logger.info("latent scale set to %.5f from the first batch", float(self.scale_factor))

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor | None:
        if self.private is None:
            return super().training_step(batch, batch_idx)
        self.private.step(self, batch)
        return None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.start_privacy:  # training on public images does not undo what the start has spent
            checkpoint["start_privacy"] = self.start_privacy
        if self.private is not None:
            self.private.release()
            checkpoint["privacy"] = self.private.state_dict()

    def log_images(
        self, batch: Mapping[str, Any], count: int = 8, steps: int = 50, private: bool = False
    ) -> dict[str, Tensor]:
        """Images for the image logger; see `ldm.models.diffusion.log_images.log_images`."""
        return log_images(self, batch, count, steps, private)
