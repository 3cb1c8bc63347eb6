"""Adapters of a latent diffusion model, from the options of DP-LoRA and DP-LDM."""

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
class LoRAOptions:
    """The model's options for low-rank adapters, all off by default.

    ``use_model_lora`` and ``use_cond_lora`` are those of DP-LoRA, ``use_lora`` is that of DP-LDM.
    """

    #: Adapters that the UNet creates itself (loralib), of rank ``unet_config.params.lora_rank``.
    use_lora: bool = False
    #: Adapters on the layers of the UNet that ``model_lora_target`` names.
    use_model_lora: bool = False
    #: Rank r >= 1 of the UNet's adapters.
    model_lora_r: int = 8
    #: Numerator of the scaling of the UNet's adapters; None means the rank.
    model_lora_alpha: float | None = None
    #: Names, or ends of names, of the UNet's layers that get an adapter.
    model_lora_target: Sequence[str] = ()
    #: Initialization of the down-projections, see `LoRAConfig`.
    model_lora_init: str = "gaussian"
    #: ``standard`` is alpha / r, see `LoRAConfig` for the others.
    model_lora_scaling: str = "standard"
    #: Schedule of ranks over the layers, see `RankSchedule`.
    model_lora_rank_schedule: Mapping[str, Any] | None = None
    #: Adapters on the layers of the condition stage that ``cond_lora_target`` names.
    use_cond_lora: bool = False
    #: Rank r >= 1 of the condition stage's adapters.
    cond_lora_r: int = 8
    #: Names, or ends of names, of the condition stage's layers that get an adapter.
    cond_lora_target: Sequence[str] = ()

    def check(self, unet_rank: int | None) -> None:
        """Raise UserError for options that contradict each other, or the ``lora_rank`` of the UNet."""
        if self.use_lora and self.use_model_lora:
            raise UserError("use_lora and use_model_lora are both set; keep use_model_lora and its targets")
        if self.use_lora and unet_rank is None:
            raise UserError("use_lora: needs unet_config.params.lora_rank, e.g. 8; or use use_model_lora with targets")
        if unet_rank is not None and not self.use_lora:
            raise UserError("unet_config.params.lora_rank is set but use_lora is not; set use_lora: true, or drop it")
        for switch, option in (
            ("use_model_lora", "model_lora_target"),
            ("use_model_lora", "model_lora_rank_schedule"),
            ("use_cond_lora", "cond_lora_target"),
        ):
            if getattr(self, option) and not getattr(self, switch):
                raise UserError(f"{option} is set but {switch} is not; set {switch}: true, or drop {option}")


@dataclass(frozen=True)
class AdapterPlan:
    """The adapters of a model: on its network, on its condition stage, or created by the network itself (loralib)."""

    network: LoRAConfig | None = None
    condition: LoRAConfig | None = None
    by_network: bool = False

    @classmethod
    def read(cls, options: LoRAOptions, unet_config: Any) -> AdapterPlan:
        """Read the model's options. Raises UserError for options that contradict each other or are incomplete."""
        options.check((unet_config.get("params") or {}).get("lora_rank") if unet_config else None)
        network = condition = None
        if options.use_model_lora:
            schedule = options.model_lora_rank_schedule
            network = LoRAConfig(
                _targets("model_lora_target", options.model_lora_target),
                options.model_lora_r,
                options.model_lora_alpha,
                options.model_lora_init,
                options.model_lora_scaling,
                RankSchedule.read(schedule) if schedule else None,
            )
        if options.use_cond_lora:  # scaling 1 (alpha = r); the published code used UNet rank / r
            condition = LoRAConfig(
                _targets("cond_lora_target", options.cond_lora_target),
                options.cond_lora_r,
                init=options.model_lora_init,
                scaling=options.model_lora_scaling,
            )
        return cls(network, condition, bool(options.use_lora))

    def __bool__(self) -> bool:
        return self.on_network or self.condition is not None

    @property
    def on_network(self) -> bool:
        """Whether the network has adapters."""
        return self.network is not None or self.by_network

    def insert(self, model: Any, ema_decay: float) -> None:
        """Insert the adapters into a `LatentDiffusion`, freeze its base weights, and average the adapters only."""
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
    """Freeze all parameters of a module except its adapters."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(is_adapter_name(name))


def to_model_names(
    model: Any, state: Mapping[str, Tensor], source: str, fresh_adapters: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A state dict of any adapter style under this model's names, and the adapter tensors missing from it.

    A state dict without adapters belongs to the plain network. It is accepted only with ``fresh_adapters``, and the
    model's adapters then keep their initial values. Scalings are converted between conventions: loralib uses 1 / r,
    DP-LoRA 1. Raises UserError when only one of file and model has adapters, or the ranks differ.
    """
    style = style_of(state)
    plain = to_plain(state)
    theirs = layers_of(plain)
    ours = {name: layer for name, layer in adapters(model) if name.startswith(PARTS)}
    if not theirs:
        if ours and not fresh_adapters:
            raise UserError(
                f"{source}: has no adapters, the config has {len(ours)}; give the checkpoint of the fine-tuned model"
            )
        return plain, tuple(key for key in model.state_dict() if is_adapter_name(key))
    missing = [name for name in ours if name not in theirs]
    if missing and all(name.endswith(".to_out.0") for name in missing) and len(missing) < len(ours):
        raise UserError(
            f"{source}: has no adapters on output projections, the config has: take to_out.0 (or to_out.Linear, which "
            "named nothing in the published code) out of model_lora_target"
        )
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


def _targets(option: str, targets: Sequence[str]) -> tuple[str, ...]:
    """The targets of an option, with lineage spellings translated; a single name needs no brackets."""
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
