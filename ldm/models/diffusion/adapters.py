"""Adapters of a latent diffusion model: the options of DP-LoRA and DP-LDM, read into one object."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ldm.checkpoint.lora_names import PARTS, default_scale, layers_of, rescaled, style_of, to_plain
from ldm.errors import UserError
from ldm.modules.ema import LitEma
from ldm.modules.lora import LoRAConfig, RankSchedule, adapters, insert_adapters, is_adapter_name

logger = logging.getLogger(__name__)

ALIASES = {"to_out.Linear": "to_out.0"}


@dataclass(frozen=True)
class AdapterPlan:
    """Which adapters a model has: on its network, on its condition stage, or made by the network itself (loralib).

    All off by default. Options are those of DP-LoRA (``use_model_lora``, ``use_cond_lora``) and DP-LDM (``use_lora``
    with the UNet's ``lora_rank``).
    """

    network: LoRAConfig | None = None
    condition: LoRAConfig | None = None
    by_network: bool = False

    @classmethod
    def read(
        cls,
        *,
        use_lora: bool,
        use_model_lora: bool,
        model_lora_r: int,
        model_lora_alpha: float | None,
        model_lora_target: Sequence[str],
        model_lora_init: str,
        model_lora_scaling: str,
        model_lora_rank_schedule: Mapping[str, Any] | None,
        use_cond_lora: bool,
        cond_lora_r: int,
        cond_lora_target: Sequence[str],
        unet_config: Any,
    ) -> AdapterPlan:
        """Read the constructor options. Raises UserError for options that contradict each other or are incomplete."""
        unet_rank = (unet_config.get("params") or {}).get("lora_rank") if unet_config else None
        if use_lora and use_model_lora:
            raise UserError("use_lora and use_model_lora are both set; keep use_model_lora and its targets")
        if use_lora and unet_rank is None:
            raise UserError("use_lora: needs unet_config.params.lora_rank, e.g. 8; or use use_model_lora with targets")
        if unet_rank is not None and not use_lora:
            raise UserError("unet_config.params.lora_rank is set but use_lora is not; set use_lora: true, or drop it")
        for switch, on, option, given in (
            ("use_model_lora", use_model_lora, "model_lora_target", model_lora_target),
            ("use_model_lora", use_model_lora, "model_lora_rank_schedule", model_lora_rank_schedule),
            ("use_cond_lora", use_cond_lora, "cond_lora_target", cond_lora_target),
        ):
            if given and not on:
                raise UserError(f"{option} is set but {switch} is not; set {switch}: true, or drop {option}")
        network = condition = None
        if use_model_lora:
            network = LoRAConfig(
                _targets("model_lora_target", model_lora_target),
                model_lora_r,
                model_lora_alpha,
                model_lora_init,
                model_lora_scaling,
                RankSchedule.read(model_lora_rank_schedule) if model_lora_rank_schedule else None,
            )
        if use_cond_lora:  # alpha is its own rank: the published code divided the network's rank by this one
            targets = _targets("cond_lora_target", cond_lora_target)
            condition = LoRAConfig(targets, cond_lora_r, init=model_lora_init, scaling=model_lora_scaling)
        return cls(network, condition, bool(use_lora))

    def __bool__(self) -> bool:
        return self.on_network or self.condition is not None

    @property
    def on_network(self) -> bool:
        """Whether the network has adapters."""
        return self.network is not None or self.by_network

    def insert(self, model: Any, ema_decay: float) -> None:
        """Put the adapters into a `LatentDiffusion`, freeze what they stand beside, and average them alone."""
        if self.network is not None:
            insert_adapters(model.model, self.network)
        if self.condition is not None:
            if model.cond_stage_model is None or model.cond_stage_model is model.first_stage_model:
                raise UserError("use_cond_lora: this model has no condition stage of its own; set it to false")
            insert_adapters(model.cond_stage_model, self.condition)
            freeze_base(model.cond_stage_model)
        if self.on_network:
            freeze_base(model.model)
            if model.use_ema:
                model.model_ema = LitEma(model.model, decay=ema_decay)


def freeze_base(module: nn.Module) -> None:
    """Leave gradients to the adapters of a module only."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(is_adapter_name(name))


def to_model_names(model: Any, state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A state dict of any adapter style under this model's names, and the adapter tensors that it does not bring.

    A state dict without adapters is the plain network's: the adapters of a model that is being built keep their start.
    Values of another convention are converted: loralib's adapters have the scaling 1 / r, those of DP-LoRA 1. Raises
    UserError when only one of file and model has adapters, or the ranks differ.
    """
    style = style_of(state)
    plain = to_plain(state)
    theirs = layers_of(plain)
    ours = {name: layer for name, layer in adapters(model) if name.startswith(PARTS)}
    if not theirs:
        if ours and not model.adapters_may_be_fresh:
            raise UserError(
                f"{source}: has no adapters, the config has {len(ours)}; give the checkpoint of the fine-tuned model"
            )
        return plain, tuple(key for key in model.state_dict() if is_adapter_name(key))
    if not ours:
        raise UserError(
            f"{source}: has adapters on {len(theirs)} layers (rank {max(theirs.values())}), the config has none; set "
            f"use_model_lora and their targets, or merge them: python scripts/merge_lora.py --ckpt {source}"
        )
    for name, rank in theirs.items():
        if name in ours and ours[name].rank != rank:
            raise UserError(
                f"{source}: the adapter of {name} has rank {rank} in the file and {ours[name].rank} in the config; set "
                f"model_lora_r: {rank}, or ask for another rank: python scripts/convert_ckpt_lora.py --adapt-rank "
                f"{ours[name].rank}"
            )
    if style == "loralib" or (style == "peft" and model.adapter_plan.by_network):
        stated = default_scale(style)
        plain = rescaled(plain, lambda name, rank: stated(name, rank) / ours[name].scaling if name in ours else 1.0)
    return plain, ()


def merge_dpdm_k(dp_config: Mapping[str, Any] | None, copies: int) -> dict[str, Any]:
    """A ``dp_config`` with DP-LoRA's spelling ``DPDM_k`` of the noise multiplicity in it.

    Raises UserError when it states another number itself.
    """
    config = dict(dp_config or {})
    if copies == 1:
        return config
    if config.get("noise_multiplicity", copies) != copies:
        raise UserError(
            f"DPDM_k is {copies} but dp_config.noise_multiplicity is {config['noise_multiplicity']}; keep the latter"
        )
    if config.get("enabled", False):
        config["noise_multiplicity"] = copies
    else:
        logger.warning("DPDM_k: %d noise draws a record are for private training; this run takes one", copies)
    return config


def _targets(option: str, targets: Sequence[str]) -> tuple[str, ...]:
    """The targets of an option, lineage spellings understood; a single name may stand without brackets."""
    names = [targets] if isinstance(targets, str) else list(targets)
    if not names:
        raise UserError(f"{option} is empty; name layers, e.g. [to_q, to_k, to_v, to_out.0] or [qkv, proj_out]")
    for name in names:
        if name in ALIASES:
            logger.warning(
                "%s: %r is read as %r, the output projection; it named nothing in the published code, so leave it out "
                "to train what the published runs trained",
                option,
                name,
                ALIASES[name],
            )
    return tuple(dict.fromkeys(ALIASES.get(str(name), str(name)) for name in names))
