"""The settings of a sweep: every combination of the values that are tried."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from ldm.errors import UserError

#: Keys of the privacy promise, which every run of a sweep keeps.
PROMISES = (
    "enabled",
    "epsilon",
    "delta",
    "dataset_size",
    "noise_multiplier",
    "selection",
    "other_runs",
    "insecure_seed",
)

Setting = tuple[str, ...]


def parse_grid(words: Sequence[str]) -> tuple[Setting, ...]:
    """``key.path=value,value`` words as all combinations, each a tuple of ``key.path=value``.

    Raises UserError for a word of another form, a key given twice, and a key that is part of the privacy promise.
    """
    axes: dict[str, list[str]] = {}
    for word in words:
        key, separator, values = word.partition("=")
        if not separator or not key or not all(value.strip() for value in values.split(",")):
            raise UserError(f"--try {word}: type key.path=value,value, such as model.base_learning_rate=1e-5,4e-5")
        if key in axes:
            raise UserError(f"--try {key} is given twice; list its values in one word")
        if key.startswith("model.params.dp_config.") and key.rpartition(".")[2] in PROMISES:
            raise UserError(f"--try {key}: a sweep keeps the privacy promise; it tries other settings under it")
        axes[key] = [value.strip() for value in values.split(",")]
    if not axes:
        raise UserError("nothing to try; type --try key.path=value,value, such as model.base_learning_rate=1e-5,4e-5")
    return tuple(
        tuple(f"{key}={value}" for key, value in zip(axes, values, strict=True)) for values in product(*axes.values())
    )
