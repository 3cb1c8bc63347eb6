"""Build the object that a configuration section with a target describes.

Parameters are checked against the constructor before the call, so that a misspelt key raises an error with the nearest
valid key and does not silently fall back to a default.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig

from ldm.config.aliases import RETIRED, canonical_target
from ldm.config.parameters import accepted_parameters
from ldm.config.plain import brief, to_plain
from ldm.config.targets import get_obj_from_str, networks_of
from ldm.config.values import fitting_values
from ldm.errors import UserError, nearest

logger = logging.getLogger(__name__)


def instantiate_from_config(config: Mapping[str, Any] | DictConfig, **extra: Any) -> Any:
    """Build the object that ``{target, params}`` describes; ``extra`` arguments override ``params``.

    Nested configurations are passed to the constructor as plain dicts and lists, with interpolations resolved; the
    constructor builds them. Parameters in :data:`RETIRED` are dropped with one warning.

    Raises:
        UserError: for a missing or forbidden target, an unknown or missing parameter, or a mandatory value ``???``.
    """
    return _instantiate(config, get_obj_from_str, extra)


def instantiate_networks(config: Mapping[str, Any] | DictConfig, **extra: Any) -> Any:
    """As `instantiate_from_config`, for a program that does not train: models without the hooks of a trainer."""
    return _instantiate(config, networks_of, extra)


def _instantiate(config: Mapping[str, Any] | DictConfig, find: Callable[[str], Any], extra: Mapping[str, Any]) -> Any:
    plain = to_plain(config)
    if not isinstance(plain, dict) or not isinstance(plain.get("target"), str):
        raise UserError(f"expected a section with a 'target', got {brief(plain)}; type target: dotted.name")
    unknown = sorted(set(plain) - {"target", "params"}, key=str)
    if unknown:
        raise UserError(
            f"unknown key '{unknown[0]}' next to target '{plain['target']}'"
            f"{nearest(str(unknown[0]), ('target', 'params'))}; arguments belong under 'params'"
        )
    target = plain["target"]
    params = plain.get("params")
    params = {} if params is None else params
    if not isinstance(params, dict):
        raise UserError(f"'params' of {target} must be a mapping, got {brief(params)}")
    params = {**params, **extra}
    factory = find(target)
    return factory(**fitting_values(target, factory, _checked(target, factory, params)))


def _checked(target: str, factory: Any, params: dict[str, Any]) -> dict[str, Any]:
    known, required, open_ended = accepted_parameters(factory)
    retired = RETIRED.get(canonical_target(target), {})
    dropped = [name for name in params if name not in known and name in retired]
    if dropped:
        reasons = "; ".join(f"{name} ({retired[name]})" for name in dropped)
        logger.warning("%s no longer takes %s", target, reasons)
    kept = {name: value for name, value in params.items() if name not in dropped}
    if not open_ended:
        for name in kept:
            if name not in known:
                hint = nearest(str(name), known) or f"; it takes {', '.join(sorted(known)) or 'none'}"
                raise UserError(f"{target} has no parameter '{name}'{hint}")
    absent = [name for name in required if name not in kept]
    if absent:
        raise UserError(f"{target} needs the parameter '{absent[0]}'; set it under its 'params'")
    return kept
