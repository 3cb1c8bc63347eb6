"""Configuration sections as dataclasses of options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar, cast, get_args, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from ldm.config.plain import brief
from ldm.errors import UserError, nearest

Options = TypeVar("Options")

#: Error messages for values of the wrong type.
_IS_NO: dict[Any, str] = {
    bool: "is neither true nor false",
    int: "is no whole number",
    float: "is no number",
    str: "is no text",
}


def read_options(kind: type[Options], raw: Mapping[str, Any], where: str, other_names: Sequence[str] = ()) -> Options:
    """An options dataclass filled from a configuration section; missing values keep their defaults.

    Strings of numbers and booleans are converted, because YAML reads some of them as text. ``other_names`` are further
    suggestions for a misspelt key.

    Raises:
        UserError: for an unknown key, naming the nearest, or a value of another type.
    """
    try:
        return cast(Options, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), dict(raw))))
    except ConfigKeyError as error:
        known = [*(field.name for field in fields(cast(Any, kind))), *other_names]
        raise UserError(f"{where}.{error.key} is unknown{nearest(str(error.key), known)}") from None
    except OmegaConfBaseException as error:
        name = str(error.full_key).partition(".")[0].partition("[")[0]
        wanted = {type(None), get_type_hints(kind).get(name)}
        wanted |= {part for hint in wanted for part in get_args(hint)}
        is_no = next((words for type_, words in _IS_NO.items() if type_ in wanted), "cannot be read")
        raise UserError(f"{where}.{name}: {brief(raw.get(name))} {is_no}") from None


def take_options(kind: type[Options], given: dict[str, Any]) -> Options:
    """The dataclass built from the arguments in ``given`` that are its fields; they are removed from ``given``."""
    names = [field.name for field in fields(cast(Any, kind))]
    return kind(**{name: given.pop(name) for name in names if name in given})
