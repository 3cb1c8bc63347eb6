"""`LatentDenoiser`: the diffusion model in the latent space of a frozen autoencoder, with conditions; no trainer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from ldm.config import instantiate_networks, take_options
from ldm.errors import UserError
from ldm.models.diffusion.adapters import AdapterPlan, LoRAOptions, to_model_names
from ldm.models.diffusion.denoiser import Denoiser
from ldm.models.diffusion.dp_config import read_dp_config
from ldm.models.diffusion.finetuning import FineTuning, FineTuningOptions, Selection
from ldm.models.diffusion.latent_scale import LatentScale
from ldm.models.diffusion.lineage import LineageSampling
from ldm.models.diffusion.timesteps import TimestepRule
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution

logger = logging.getLogger(__name__)

RAW_CONDITION_KEYS = ("caption", "coordinates_bbox")


class LatentDenoiser(LineageSampling, LatentScale, Denoiser):
    """Latent diffusion (Rombach et al. 2022) with the fine-tuning switches of DP-LDM.

    A batch holds images (B, H, W, C) under ``first_stage_key``, or ``moments`` (B, 2z, h, w) when its latents were
    cached, and the condition under ``cond_stage_key``. Latents are (B, z, h, w), scaled by ``scale_factor``.

    Args:
        timestep_weights: table of loss weights over timesteps, see `ldm.models.diffusion.timesteps.TimestepRule`.
        timestep_sampling: table of sampling probabilities over timesteps, in place of equal ones.
        first_stage_config: section of the frozen autoencoder.
        cond_stage_config: section of the condition stage, __is_unconditional__, or __is_first_stage__.
        num_timesteps_cond: accepted for compatibility with the lineage; only 1 is supported.
        cond_stage_key: entry of a batch that holds the condition, such as class_label or caption.
        cond_stage_trainable: train the condition stage too.
        concat_mode: default conditioning_key: concat (true) or crossattn (false).
        cond_stage_forward: encoding method of the condition stage; null for encode, else forward.
        scale_factor: multiplier of the latents; a checkpoint's value takes precedence.
        scale_by_std: set scale_factor to 1 / the standard deviation of the first batch; refused in private runs.
        DPDM_k: DP-LoRA's name of dp_config.noise_multiplicity.
        dp_config: section of the private training, see below.
        optimizer_config: further options of AdamW, such as weight_decay.
    """

    #: Flags that are read into these dataclasses; a configuration may give any of their fields.
    OPTION_GROUPS = (LoRAOptions, FineTuningOptions)

    #: Options of `Denoiser` that this model fixes, because a latent has no fixed range to clip to.
    FIXED_OPTIONS = ("clip_denoised",)

    def __init__(
        self,
        first_stage_config: Any,
        cond_stage_config: Any,
        unet_config: Any = None,
        num_timesteps_cond: int | None = None,
        cond_stage_key: str = "image",
        cond_stage_trainable: bool = False,
        concat_mode: bool = True,
        cond_stage_forward: str | None = None,
        conditioning_key: str | None = None,
        scale_factor: float = 1.0,
        scale_by_std: bool = False,
        DPDM_k: int = 1,
        dp_config: Mapping[str, Any] | None = None,
        optimizer_config: Mapping[str, Any] | None = None,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        load_only_unet: bool = False,
        ema_decay: float = 0.9999,
        timestep_weights: Mapping[str, Sequence[float]] | None = None,
        timestep_sampling: Mapping[str, Sequence[float]] | None = None,
        **options: Any,
    ):
        """Build the model from its configuration; ``options`` are those of `OPTION_GROUPS` and of `Denoiser`."""
        if num_timesteps_cond not in (None, 1):
            raise UserError(f"num_timesteps_cond: only 1 is supported, not {num_timesteps_cond}")
        lora = take_options(LoRAOptions, options)
        tuning = take_options(FineTuningOptions, options)
        adapters = AdapterPlan.read(lora, unet_config)
        private = read_dp_config(dp_config, DPDM_k)
        if conditioning_key is None:
            conditioning_key = "concat" if concat_mode else "crossattn"
        conditioning_key = None if cond_stage_config == "__is_unconditional__" else conditioning_key
        super().__init__(
            unet_config, conditioning_key=conditioning_key, clip_denoised=False, ema_decay=ema_decay, **options
        )
        self.dp_config = private
        self.timesteps = TimestepRule(self.num_timesteps, timestep_weights, timestep_sampling)
        self.cond_stage_key = cond_stage_key
        self.cond_stage_trainable = cond_stage_trainable or tuning.train_condition_only or lora.use_cond_lora
        self.cond_stage_forward = cond_stage_forward
        self._set_scale(scale_factor, from_data=scale_by_std)
        self.fine_tuning = FineTuning.from_options(
            tuning,
            cond_stage_trainable=cond_stage_trainable,
            adapters=adapters.on_network,
            condition_adapters=adapters.condition is not None,
        )
        self.optimizer_config = dict(optimizer_config or {})
        self._first_stage_from(first_stage_config)
        self._cond_stage_from(cond_stage_config)
        self.adapter_plan = adapters
        adapters.insert(self, ema_decay)
        if ckpt_path is not None:
            flag = tuning.attention_flag if tuning.retrain_attention else None
            fresh = self.fine_tuning.attention_prefixes(self, flag) if flag is not None else ()
            self.init_from_ckpt(ckpt_path, [*ignore_keys, *fresh], only_model=load_only_unet, fresh_adapters=True)

    # ------------------------------------------------------------------ the parts

    def _build(self, config: Any) -> Any:
        """A stage of this model; the one that Lightning trains builds stages that it could train."""
        return instantiate_networks(config)

    def _first_stage_from(self, config: Any) -> None:
        self.first_stage_model = self._build(config).eval()
        self.first_stage_model.requires_grad_(False)

    def _cond_stage_from(self, config: Any) -> None:
        if config == "__is_unconditional__":
            self.cond_stage_model = None
        elif config == "__is_first_stage__":
            self.cond_stage_model = self.first_stage_model
        else:
            self.cond_stage_model = self._build(config)
            if not self.cond_stage_trainable:
                self.cond_stage_model.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Switch modes; frozen stages stay in evaluation mode."""
        super().train(mode)
        self.first_stage_model.eval()
        if self.cond_stage_model is not None and not self.cond_stage_trainable:
            self.cond_stage_model.eval()
        return self

    def unused_prefixes(self) -> tuple[str, ...]:
        # A released checkpoint carries the loss networks of its autoencoder (LPIPS, discriminator).
        unused = (*super().unused_prefixes(), "first_stage_model.loss.")
        keeps_average = hasattr(self.first_stage_model, "model_ema")  # sampling decodes with the trained weights
        return unused if keeps_average else (*unused, "first_stage_model.model_ema.")

    def adapt_state(
        self, state: Mapping[str, Tensor], source: str, fresh_adapters: bool
    ) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """As in `Denoiser`, with the adapters of any naming style; takes the scale of the latents from the state."""
        own, missing = to_model_names(self, state, source, fresh_adapters)
        if "scale_factor" in own:
            self._take_scale_of(own["scale_factor"])
        elif not self.scale_is_known:
            logger.info("%s holds no scale_factor: it stays %g, as in its training", source, float(self.scale_factor))
            self.scale_is_known = True
        return own, missing

    # ------------------------------------------------------------------ the first stage

    @torch.no_grad()
    def encode_first_stage(self, x: Tensor) -> Any:
        """Posterior (KL) or pre-quantised latents (VQ) of images (B, C, H, W)."""
        return self.first_stage_model.encode(x)

    @torch.no_grad()
    def encode_moments(self, x: Tensor) -> Tensor:
        """Unscaled posterior moments (B, 2z, h, w) of images (B, C, H, W), as stored in a latent cache.

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
    def latents(self, batch: Mapping[str, Any], microbatch: int | None = None, key: str | None = None) -> Tensor:
        """Scaled latents (B, z, h, w) of a batch, from its cached moments or by encoding its images.

        Images are those under ``key`` (default ``first_stage_key``); at most ``microbatch`` are encoded at a time.
        """
        if "moments" in batch:
            moments = batch["moments"].float()
        else:
            images = Denoiser.get_input(self, batch, key or self.first_stage_key)
            parts = images.split(microbatch or max(1, len(images)))
            moments = torch.cat([self.encode_moments(part) for part in parts]) if len(images) else None
            if moments is None:
                return images.new_zeros(0, *self.latent_shape)
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
        """Encode a raw condition (labels in a dict, tokens, images, ...) for the network."""
        if self.cond_stage_model is None:
            raise UserError("this model has no condition stage; sample it without a condition")
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
            return raw if tokenize is None or isinstance(raw, Tensor) else tokenize(raw)  # tokens split by record
        return Denoiser.get_input(self, batch, self.cond_stage_key)

    # ------------------------------------------------------------------ network and loss

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """Run the network; ``cond`` is None, a tensor, a list of tensors, or a dict by conditioning kind."""
        if cond is None:
            cond = {}
        elif not isinstance(cond, Mapping):
            tensors = list(cond) if isinstance(cond, (list, tuple)) else [cond]
            cond = {"c_concat" if self.model.conditioning_key == "concat" else "c_crossattn": tensors}
        return self.model(x_noisy, t, **cond)

    def p_losses(  # type: ignore[override]
        self, x_start: Tensor, cond: Any, t: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of latents under an encoded condition, and metrics to log; keeps the lineage's signature."""
        noise = torch.randn_like(x_start) if noise is None else noise
        return self._summarise(self.loss_terms(x_start, t, noise, cond))

    def draw_timesteps(self, rows: int) -> Tensor:
        """Timesteps (rows,) int64, distributed as ``timestep_sampling`` says."""
        return self.timesteps.draw(rows, self.device)

    def loss_terms(self, x_start: Tensor, t: Tensor, noise: Tensor, cond: Any = None) -> dict[str, Tensor]:
        """As in `Denoiser`, with every per-example loss multiplied by the weight of its timestep."""
        terms = super().loss_terms(x_start, t, noise, cond)
        return {**terms, "loss": self.timesteps.weighted(terms["loss"], t)}

    def shared_step(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        z, cond = self.get_input(batch, self.first_stage_key)
        if cond is not None and self.cond_stage_trainable:
            cond = self.get_learned_conditioning(cond)
        return self.p_losses(z, cond, self.draw_timesteps(len(z)))

    @torch.no_grad()
    def expand_batch(self, batch: Mapping[str, Any], multiplicity: int, microbatch: int | None) -> dict[str, Tensor]:
        """The B * multiplicity examples of B records: latents ``z``, timesteps ``t``, ``noise`` and condition.

        Each is a tensor (B * multiplicity, ...) with the examples of a record next to each other. A record has one
        latent, and ``multiplicity`` independent timesteps and noises on it (Dockhorn et al. 2023, section 3). At most
        ``microbatch`` images are encoded at a time. Raises UserError for a condition that cannot be split by record.
        """
        z = self.latents(batch, microbatch).repeat_interleave(multiplicity, dim=0)
        examples = {"z": z, "t": self.draw_timesteps(len(z)), "noise": torch.randn_like(z)}
        condition = self.raw_condition(batch)
        if condition is None:
            return examples
        if isinstance(condition, Mapping):
            named = {f"cond:{name}": value for name, value in condition.items()}
        elif isinstance(condition, Tensor):
            named = {"cond": condition}
        else:
            raise UserError(
                f"private training cannot split a condition of type {type(condition).__name__} into records"
            )
        return {**examples, **{name: value.repeat_interleave(multiplicity, dim=0) for name, value in named.items()}}

    def per_example_losses(self, examples: Mapping[str, Tensor]) -> Tensor:
        """The losses (N,) of N examples of `expand_batch`."""
        named = {key.removeprefix("cond:"): value for key, value in examples.items() if key.startswith("cond:")}
        condition: Any = named or examples.get("cond")
        if condition is not None:  # encoded per microbatch, because the captions of a whole batch take much memory
            condition = self.get_learned_conditioning(condition)
        return self.loss_terms(examples["z"], examples["t"], examples["noise"], condition)["loss"]

    def example_batch(self, records: int) -> dict[str, Any] | None:
        """A batch of random latents with class 0 or a one-word caption; None for any other condition."""
        shape = (records, *self.latent_shape)
        batch: dict[str, Any] = {"moments": torch.randn(shape).to(self.device)}
        if self.cond_stage_model is None:
            return batch
        if self.cond_stage_key == "class_label":
            return {**batch, "class_label": torch.zeros(records, dtype=torch.long, device=self.device)}
        if self.cond_stage_key == "caption":
            return {**batch, "caption": ["image"] * records}
        return None

    # ------------------------------------------------------------------ training

    def select_trainable(self) -> Selection:
        """Freeze all parameters that are not fine-tuned; returns the names of trained and of left-out parameters."""
        selection = self.fine_tuning.select(self, private=self.dp_config.enabled)
        self.requires_grad_(False)
        for parameter in selection.parameters.values():
            parameter.requires_grad_(True)
        return selection

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.fine_tuning.select(self, private=self.dp_config.enabled).parameters)

    def seen_unprotected(self) -> tuple[str, ...]:
        """Digests of the known data sets on which any part of the model was trained without privacy."""
        autoencoder = getattr(self.first_stage_model, "unprotected_data", ())
        return tuple(dict.fromkeys((*self.unprotected_data, *autoencoder)))
