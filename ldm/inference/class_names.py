"""Public names of a model's classes, as its configuration declares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor

from ldm.config import load_config, to_plain
from ldm.samples import CLASS_NAMES_KEY

PLACE = ("data", "params", "train", "params", CLASS_NAMES_KEY)


def declared_class_names(config: str | Path, settings: Sequence[str] = ()) -> tuple[str, ...]:
    """The names in ``data.params.train.params.class_names`` of a configuration; none when it declares none."""
    values: Any = load_config([config], settings)
    for key in PLACE:  # a data section may have unset values elsewhere, which do not matter here
        values = values.get(key) if isinstance(values, Mapping) and not OmegaConf.is_missing(values, key) else None
    names = to_plain(values)
    return tuple(map(str, names)) if isinstance(names, list) else ()


def named_labels(labels: Tensor | None, names: Sequence[str]) -> dict[str, list[str]]:
    """The metadata entry with the names of the labels (N,); empty without labels, and when a label has no name."""
    if labels is None or not len(labels) or not names or int(labels.max()) >= len(names):
        return {}
    return {CLASS_NAMES_KEY: list(names)}
