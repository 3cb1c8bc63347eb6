"""Numbers of values of a model, in all and trained, part by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ldm.checkpoint import checkpoint_metadata, read_checkpoint
from ldm.config import instantiate_from_config, load_config, to_plain
from ldm.errors import UserError
from ldm.inference.load import without_checkpoints
from ldm.modules.lora import is_adapter_name

PREFIXES = {
    "model_ema.": "averages",
    "model.": "network",
    "cond_stage_model.": "condition stage",
    "first_stage_model.loss.": "autoencoder loss",
    "first_stage_model.": "first stage",
}
BASE = ("network", "condition stage")  # fine-tuning can train these parts, so the share is relative to them
NOT_WEIGHTS = ("averages", "buffers")


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of values of a model by part; ``trained`` by part, None if the trained subset is unknown.

    ``left_out`` counts values that the fine-tuning rule selects but that are not trained, because no record gives them
    a gradient.
    """

    source: str
    parts: Mapping[str, int]
    trained: Mapping[str, int] | None = None
    left_out: int = 0

    @property
    def total(self) -> int:
        """All weights: everything but averages and buffers."""
        return sum(count for part, count in self.parts.items() if part not in NOT_WEIGHTS)

    @property
    def share(self) -> float | None:
        """Trained values over those of the network and the condition stage without adapters, in [0, 1]."""
        base = sum(self.parts.get(part, 0) for part in BASE)
        return sum(self.trained.values()) / base if self.trained is not None and base else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        trained = None
        if self.trained is not None:
            trained = {"total": sum(self.trained.values()), **self.trained}
        return {
            "source": self.source,
            "total": self.total,
            "adapters": self.parts.get("adapters", 0),
            "parts": dict(self.parts),
            "trained": trained,
            "left_out": self.left_out,
            "share": self.share,
        }

    def __str__(self) -> str:
        rows = [(f"  {part}", f"{count:,}", "") for part, count in self.parts.items()]
        rows.append(("  total", f"{self.total:,}", "without averages and buffers"))
        if self.trained is not None:
            share = "" if self.share is None else f"{self.share:.3%} of network and condition stage"
            rows.append(("  trained", f"{sum(self.trained.values()):,}", share))
            rows += [(f"    {part}", f"{count:,}", "") for part, count in self.trained.items()]
        if self.left_out:
            rows.append(("  left out", f"{self.left_out:,}", "picked by the rule, but no record gives them a gradient"))
        return "\n".join([self.source, *(f"{name:20}{count:>16}  {note}".rstrip() for name, count, note in rows)])


def count_config(path: str | Path, dotlist: Sequence[str] = ()) -> ParameterCounts:
    """Counts of the model that a configuration describes, built without allocating it.

    Checkpoint paths in the configuration are not opened. Raises UserError for a configuration without a model.
    """
    config = load_config([path], dotlist)
    if not isinstance(config.get("model"), DictConfig) or not isinstance(config.model.get("params"), DictConfig):
        raise UserError(f"{path}: has no section 'model' with target and params; give a training configuration")
    return _count_model(build_unallocated(config.model), str(path))


def count_checkpoint(path: str | Path) -> ParameterCounts:
    """Counts of a checkpoint's tensors; trained values are counted if the checkpoint holds its configuration."""
    content = read_checkpoint(path)
    counts = ParameterCounts(str(path), count_parts(content["state_dict"]))
    section = checkpoint_metadata(content, "model_config")
    if not isinstance(section, Mapping) or not isinstance(section.get("params"), Mapping):
        return counts
    described = _count_model(build_unallocated(OmegaConf.create(dict(section))), str(path))
    return ParameterCounts(counts.source, counts.parts, described.trained, described.left_out)


def build_unallocated(section: DictConfig) -> Any:
    """The model of a configuration's ``model`` section on the meta device, which allocates no memory; reads no file."""
    plain = to_plain(without_checkpoints(section))
    plain.pop("base_learning_rate", None)
    with torch.device("meta"):
        return instantiate_from_config(plain)


def count_parts(state: Mapping[str, Any]) -> dict[str, int]:
    """Values by part of a state dict; adapters of all layers form one part."""
    counts: Counter[str] = Counter()
    for name, value in state.items():
        if isinstance(value, Tensor):
            counts[part_of(name)] += value.numel()
    order = ["network", "adapters", *PREFIXES.values()]
    return dict(sorted(counts.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def part_of(name: str) -> str:
    """The part that a state-dict key belongs to; in an autoencoder, its first name."""
    if name.startswith("model_ema."):
        return "averages"
    if is_adapter_name(name):
        return "adapters"
    for prefix, part in PREFIXES.items():
        if name.startswith(prefix):
            return part
    return name.split(".")[0] if "." in name else "buffers"


def format_for_study(counts: ParameterCounts) -> str:
    """The three lines that the DP-LoRA reproduction study prints for a checkpoint.

    Its total counts all tensors of the file, with averages, buffers and the autoencoder. Its trainable part counts the
    adapters alone, without a trained embedding.
    """
    total, adapters = sum(counts.parts.values()), counts.parts.get("adapters", 0)
    rule = "-" * 40
    percentage = 100 * adapters / total if total else 0.0
    return "\n".join(
        [
            rule,
            f"Total parameters: {total:,}",
            f"Trainable (LoRA): {adapters:,}",
            f"Percentage Trainable: {percentage:.4f}%",
            rule,
        ]
    )


def _count_model(model: Any, source: str) -> ParameterCounts:
    parts = count_parts(model.state_dict())
    if not hasattr(model, "select_trainable"):
        trained = {name: value for name, value in model.named_parameters() if not name.startswith("loss.")}
        return ParameterCounts(source, parts, count_parts(trained))
    named = dict(model.named_parameters())
    selection = model.select_trainable()
    left_out = sum(named[name].numel() for name in selection.dead)
    return ParameterCounts(source, parts, count_parts(selection.parameters), left_out)
