"""Conversion of configurations to plain dicts and lists, and of values to short text for messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from ldm.errors import UserError, first_line


def to_plain(config: Any, where: str = "") -> Any:
    """Turn OmegaConf containers, also nested in plain ones, into plain dicts and lists, interpolations resolved.

    Raises:
        UserError: for an unset mandatory value (``???``), or an interpolation that cannot be resolved.
    """
    if isinstance(config, DictConfig | ListConfig):
        try:
            return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        except MissingMandatoryValue as error:
            raise _unset(str(error.full_key)) from None
        except OmegaConfBaseException as error:
            raise UserError(f"cannot resolve '{error.full_key}' in the configuration: {first_line(error)}") from None
    if isinstance(config, Mapping):
        return {key: to_plain(value, f"{where}.{key}" if where else str(key)) for key, value in config.items()}
    if isinstance(config, list | tuple):
        items = [to_plain(value, f"{where}[{index}]") for index, value in enumerate(config)]
        return type(config)(items) if type(config) in (list, tuple) else config
    if isinstance(config, str) and config == "???":
        raise _unset(where)
    return config


def value_at(values: Any, *keys: str) -> Any:
    """The value at nested ``keys`` of plain mappings; None where one of them is missing."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def section_at(config: Any, keys: str, where: object) -> Any:
    """The section at dotted ``keys``, such as ``data.params.train``, of a configuration that was read from ``where``.

    Raises:
        UserError: when it is missing or is no section.
    """
    found = config
    for key in keys.split("."):
        missing = not isinstance(found, DictConfig) or OmegaConf.is_missing(found, key)
        found = None if missing else found.get(key)
    if not isinstance(found, DictConfig):
        raise UserError(f"{where}: has no section '{keys}'; name a configuration that has one")
    return found


def _unset(key: str) -> UserError:
    return UserError(f"'{key}' has no value yet (???); set it in the YAML file or type {key}=VALUE")


def brief(value: Any) -> str:
    """A value as text of at most 60 characters for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
