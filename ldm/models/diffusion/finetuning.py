"""`FineTuning`: which parameters of a latent diffusion model are trained."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ldm.errors import UserError
from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.openaimodel import AttentionBlock, ResBlock
from ldm.modules.lora import is_adapter_name

logger = logging.getLogger(__name__)

DEAD_WITH_ONE_TOKEN = ("attn2.to_q", "attn2.to_k", "norm2")


@dataclass(frozen=True)
class Selection:
    """The trained parameters by name, and the names of those left out because their gradient is always zero."""

    parameters: Mapping[str, nn.Parameter]
    dead: tuple[str, ...] = ()
    blocks: tuple[str, ...] = field(default=())

    @property
    def count(self) -> int:
        """Number of trained values."""
        return sum(parameter.numel() for parameter in self.parameters.values())


@dataclass(frozen=True)
class FineTuningOptions:
    """DP-LDM's flags that select the trained parameters; without any flag the whole network is trained."""

    #: Train the spatial transformers, and the condition stage.
    train_condition_only: bool = False
    #: Train the attention blocks.
    train_attention_only: bool = False
    #: Train the attention modules of the input half.
    train_input_blocks_only: bool = False
    #: Train the residual blocks.
    train_resblocks_only: bool = False
    #: The 1-based index of the first attention module that is trained; -1, 0 and 1 mean all of them.
    ablation_blocks: int = -1
    #: Also train parameters whose gradient is always zero.
    train_dead_parameters: bool = False
    #: Do not load the checkpoint's attention modules, which keep their random initial values.
    retrain_attention: bool = False
    #: Modules that ``retrain_attention`` selects: ``spatial`` transformers or ``self``-attention blocks.
    attention_flag: str = "spatial"


@dataclass(frozen=True)
class FineTuning:
    """The rule that picks the trained parameters, as DP-LDM's flags define it (first matching rule wins).

    ``mode``: ``condition`` trains the spatial transformers, ``attention`` the attention blocks, ``input_blocks`` the
    attention modules of the input half, ``res_blocks`` the residual blocks, ``all`` the whole network.
    ``first_block`` is the 1-based index of the first attention module that is trained, in network order
    (input, middle, output); -1, 0 and 1 mean all of them. The condition stage is trained with ``condition`` always,
    otherwise when ``cond_stage_trainable``, never in mode ``attention``.

    With ``adapters`` the network trains its low-rank adapters only: all of them, or those inside the blocks that a
    narrower rule selects (``first_block``, ``input_blocks``, ``res_blocks``). With ``condition_adapters`` the condition
    stage trains its adapters only.
    """

    mode: str = "all"
    first_block: int = -1
    cond_stage_trainable: bool = False
    train_dead_parameters: bool = False
    adapters: bool = False
    condition_adapters: bool = False

    @classmethod
    def from_options(
        cls,
        options: FineTuningOptions,
        *,
        cond_stage_trainable: bool,
        adapters: bool = False,
        condition_adapters: bool = False,
    ) -> FineTuning:
        """Read the flags of the lineage; with several rules the first one applies, and a warning names it."""
        flags = {
            "condition": options.train_condition_only,
            "attention": options.train_attention_only,
            "input_blocks": options.train_input_blocks_only,
            "res_blocks": options.train_resblocks_only,
        }
        chosen = [mode for mode, on in flags.items() if on]
        if len(chosen) > 1:
            logger.warning("several fine-tuning rules are set (%s); the first one counts", ", ".join(chosen))
        return cls(
            chosen[0] if chosen else "all",
            options.ablation_blocks,
            cond_stage_trainable,
            options.train_dead_parameters,
            adapters,
            condition_adapters,
        )

    def select(self, model: Any, private: bool = False) -> Selection:
        """Pick the parameters of ``model`` (a `LatentDiffusion`).

        With ``private``, parameters without effect on the loss under a one-token condition are left out unless
        ``train_dead_parameters``, because they would receive only noise. Unused parts of the condition stage (the token
        head of a text encoder) are never trained. Raises UserError when no parameter is left.
        """
        network = model.model.diffusion_model
        blocks = self._blocks(network) if self._goes_by_blocks else []
        if not self._goes_by_blocks:
            named = {f"model.{name}": parameter for name, parameter in model.model.named_parameters()}
        else:
            prefix = "model.diffusion_model."
            named = {
                f"{prefix}{block}.{name}": parameter
                for block in blocks
                for name, parameter in network.get_submodule(block).named_parameters()
            }
        if self.adapters:
            named = {name: parameter for name, parameter in named.items() if is_adapter_name(name)}
        if getattr(model, "learn_logvar", False):
            named["logvar"] = model.logvar
        named.update(self._condition_parameters(model.cond_stage_model))
        dead = unused_parameters(model, named)
        if private and not self.train_dead_parameters:
            dead += dead_parameters(model, named)
        for name in dead:
            del named[name]
        if not named or (self._goes_by_blocks and not blocks):
            raise UserError(
                f"fine-tuning rule {self.mode!r} matches nothing in this network: use train_condition_only for spatial "
                "transformers, train_attention_only for attention blocks, and no ablation_blocks beyond their number"
            )
        return Selection(named, dead, tuple(blocks))

    @property
    def trains_condition(self) -> bool:
        """Whether the condition stage is trained too."""
        return self.mode == "condition" or (self.cond_stage_trainable and self.mode != "attention")

    @property
    def _goes_by_blocks(self) -> bool:
        """Whether the rule selects blocks of the network; otherwise adapters are trained wherever they are."""
        if self.adapters and self.mode in ("condition", "attention"):
            return self.first_block > 1
        return self.mode != "all"

    def _condition_parameters(self, stage: nn.Module | None) -> dict[str, nn.Parameter]:
        if stage is None or not (self.trains_condition or self.condition_adapters):
            return {}
        named = {f"cond_stage_model.{name}": parameter for name, parameter in stage.named_parameters()}
        if self.condition_adapters:
            named = {name: parameter for name, parameter in named.items() if is_adapter_name(name)}
        return named

    def _blocks(self, network: nn.Module) -> list[str]:
        kinds: dict[str, tuple[type, ...]] = {
            "all": (),
            "condition": (SpatialTransformer,),
            "attention": (AttentionBlock,),
            "input_blocks": (SpatialTransformer, AttentionBlock),
            "res_blocks": (ResBlock,),
        }
        found = [name for name, module in network.named_modules() if isinstance(module, kinds[self.mode])]
        order = {"input_blocks": 0, "middle_block": 1, "output_blocks": 2}
        found.sort(key=lambda name: order.get(name.split(".")[0], 3))  # stable: keeps the order within a half
        if self.mode == "input_blocks":
            return [name for name in found if name.startswith("input_blocks.")]
        if self.mode in ("condition", "attention"):
            return found[max(self.first_block, 1) - 1 :]
        return found

    def attention_prefixes(self, model: Any, kind: str) -> list[str]:
        """State-dict prefixes of every attention module and its EMA, which ``retrain_attention`` does not load."""
        if kind not in ("spatial", "self"):
            raise UserError(f"attention_flag: {kind!r} is unknown; choose spatial or self")
        wanted = SpatialTransformer if kind == "spatial" else AttentionBlock
        names = [name for name, module in model.named_modules() if isinstance(module, wanted)]
        return [f"{name}." for name in names]


def context_tokens(model: Any) -> int | None:
    """Number of tokens in the condition of a class-conditional model, found with a synthetic label; None for others."""
    stage = model.cond_stage_model
    if stage is None or model.cond_stage_key != "class_label" or not hasattr(stage, "n_classes"):
        return None
    weight = next(stage.parameters())
    with torch.no_grad():
        label = torch.zeros(1, dtype=torch.long, device=weight.device)
        return int(model.get_learned_conditioning({"class_label": label}).shape[1])


def dead_parameters(model: Any, names: Iterable[str]) -> tuple[str, ...]:
    """The named parameters that get no gradient from any record.

    Softmax over a single token is always 1, so the query, the key and the norm that feeds only the query cannot change
    the output.
    """
    if context_tokens(model) != 1:
        return ()
    return tuple(name for name in names if any(f".{part}." in name for part in DEAD_WITH_ONE_TOKEN))


def unused_parameters(model: Any, names: Iterable[str]) -> tuple[str, ...]:
    """The named parameters of parts that the condition stage declares unused."""
    parts = getattr(model.cond_stage_model, "unused_parameters", ())
    prefixes = tuple(f"cond_stage_model.{part}" for part in parts)
    return tuple(name for name in names if prefixes and name.startswith(prefixes))
