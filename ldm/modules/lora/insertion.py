"""Finding the layers that targets name, and putting adapters in their place."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Sequence

from torch import nn

from ldm.errors import UserError
from ldm.modules.lora.config import LoRAConfig
from ldm.modules.lora.layers import ADAPTABLE, Adapter, adapt

logger = logging.getLogger(__name__)

FACTORS = ("lora_A", "lora_B")


def is_adapter_name(name: str) -> bool:
    """Whether a parameter or state-dict name is one of an adapter's two factors."""
    return any(part in FACTORS for part in name.split("."))


def adapters(root: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """The adapted layers below ``root``, by dotted name, in network order."""
    return ((name, module) for name, module in root.named_modules() if isinstance(module, Adapter))


def find_targets(root: nn.Module, targets: Sequence[str]) -> list[str]:
    """Dotted names of the layers that ``targets`` name, in network order.

    A target matches a layer whose dotted name equals it or ends in ``.`` + target. Raises UserError for a target that
    matches no layer, or a layer that cannot have an adapter.
    """
    if not targets:
        raise UserError("no LoRA targets are given; e.g. [to_q, to_k, to_v, to_out.0] or [qkv, proj_out]")
    modules = {name: module for name, module in root.named_modules() if name and not is_adapter_name(name)}
    found: set[str] = set()
    for target in targets:
        named = [name for name in modules if name == target or name.endswith(f".{target}")]
        if not named:
            raise UserError(f"the LoRA target {target!r} names no layer of the network; {_near(target, modules)}")
        for name in named:
            if not isinstance(modules[name], ADAPTABLE):
                kind = type(modules[name]).__name__
                raise UserError(
                    f"the LoRA target {target!r} names {name} ({kind}); Linear, Conv1d and Conv2d layers can have "
                    f"adapters; {_near(target, _layers_below(modules, name) or modules)}"
                )
        found.update(named)
    return [name for name in modules if name in found]


def insert_adapters(root: nn.Module, config: LoRAConfig, names: Sequence[str] | None = None) -> list[str]:
    """Adapt the layers of the config's targets (or of ``names``); returns their dotted names, in network order.

    The parameters keep their identity and names, and the factors are added. The caller selects the trained ones. Raises
    UserError for targets that match no layer and for layers that have an adapter already.
    """
    names = find_targets(root, config.targets) if names is None else list(names)
    for name in names:
        if isinstance(root.get_submodule(name), Adapter):
            raise UserError(f"{name} has an adapter already; ask for adapters once (use_model_lora or lora_rank)")
    for name, rank in zip(names, config.ranks(len(names)), strict=True):
        _replace(root, name, adapt(root.get_submodule(name), rank, config.scale(rank), config.init))
    return names


def merge_adapters(root: nn.Module) -> list[str]:
    """Replace every adapted layer by a plain one that computes the same; returns their dotted names."""
    found = list(adapters(root))
    for name, layer in found:
        _replace(root, name, layer.merged())
    return [name for name, _ in found]


def _replace(root: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    root.get_submodule(parent)._modules[child] = layer


def _layers_below(modules: dict[str, nn.Module], name: str) -> dict[str, nn.Module]:
    return {below: module for below, module in modules.items() if below.startswith(f"{name}.")}


def _near(target: str, modules: dict[str, nn.Module]) -> str:
    """Endings of existing layer names, nearest to the target first."""
    endings = set()
    for name, module in modules.items():
        if isinstance(module, ADAPTABLE):
            parts = name.split(".")
            endings.add(".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:]))
    order = sorted(endings, key=lambda ending: (-difflib.SequenceMatcher(None, target, ending).ratio(), ending))
    return f"near it are {', '.join(order[:4])}" if order else "there is no layer to adapt"
