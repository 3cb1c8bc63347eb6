"""Reading ``dp_config``: names, kinds of values, and what has to be there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm.errors import UserError, nearest

DP_KEYS = (
    "enabled",
    "epsilon",
    "delta",
    "max_grad_norm",
    "poisson_sampling",
    "max_batch_size",
    "noise_multiplicity",
    "DPDM_k",
    "clipping",
    "engine",
    "dataset_size",
    "sample_rate",
    "noise_multiplier",
    "insecure_seed",
    "public_data",
    "warm_up",
)
REAL = ("epsilon", "delta", "max_grad_norm", "sample_rate", "noise_multiplier")
WHOLE = ("noise_multiplicity", "DPDM_k", "dataset_size", "insecure_seed")


def check_names(config: Mapping[str, Any]) -> None:
    """Refuse a key of ``dp_config`` that does not exist, naming the nearest that does."""
    for key in config:
        if key not in DP_KEYS:
            raise UserError(f"dp_config.{key} is unknown{nearest(str(key), DP_KEYS)}")


def read_dp_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Check the names and values of ``dp_config``; the older name of the noise multiplicity is understood."""
    check_names(raw)
    config = {key: value for key, value in raw.items() if value is not None}
    config.update({key: real(key, config[key]) for key in REAL if key in config})
    for key in WHOLE:
        if key in config and (not isinstance(config[key], int) or isinstance(config[key], bool)):
            raise UserError(f"dp_config.{key}: {config[key]!r} is no whole number")
    if "DPDM_k" in config:
        copies = config.pop("DPDM_k")
        if config.setdefault("noise_multiplicity", copies) != copies:
            raise UserError(
                f"dp_config: DPDM_k {copies} and noise_multiplicity {config['noise_multiplicity']} are one setting; "
                "keep noise_multiplicity"
            )
    for key in ("delta", "max_grad_norm"):
        if config.get(key) is None:
            raise UserError(f"dp_config.{key} is missing; private training needs it")
    if (config.get("epsilon") is None) == (config.get("noise_multiplier") is None):
        raise UserError("dp_config: give either epsilon (the noise is calibrated) or noise_multiplier")
    size = config.get("max_batch_size")
    if size is not None and (not isinstance(size, int) or size < 1):
        raise UserError(f"dp_config.max_batch_size: {size!r} is no positive number of records")
    if not isinstance(config.get("poisson_sampling", True), bool | None):
        raise UserError(f"dp_config.poisson_sampling: {config['poisson_sampling']!r} is neither true nor false")
    return config


def real(key: str, value: Any) -> float:
    """A value of ``dp_config`` as a number; YAML reads some spellings of one as text."""
    try:
        return float(str(value))
    except ValueError:
        raise UserError(f"dp_config.{key}: {value!r} is no number") from None


def poisson(config: Mapping[str, Any]) -> bool:
    """Whether ``dp_config`` asks for Poisson batches, the default, and not for batches of a fixed size."""
    return config.get("poisson_sampling") is not False
