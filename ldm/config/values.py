"""Conversion of configuration values to the annotated types of a constructor: numbers, strings, booleans.

YAML reads a folder called 2024 as a number and 1e-3 as text, and Python treats 1, 1.0 and True as equal. Only plain
annotations are considered: ``int``, ``float``, ``bool``, ``str``, paths, and unions of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ldm.errors import UserError

_TEXT = {"str", "Path", "os.PathLike", "PathLike", "os.PathLike[str]"}
_KINDS = {"int", "float", "bool", "None", *_TEXT}
_TRUTH = {"true": True, "yes": True, "false": False, "no": False}


def fitting_values(target: str, factory: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """``params`` with each value converted to the annotated type of its parameter of ``factory``.

    Raises UserError, naming the parameter, for a value that cannot be converted.
    """
    kinds = annotated_kinds(factory)
    return {
        name: fitting(f"{target}: {name}", value, kinds[name]) if name in kinds else value
        for name, value in params.items()
    }


def annotated_kinds(factory: Any) -> dict[str, set[str]]:
    """The types of plainly annotated parameters, including those of constructors that receive the ``**kwargs``."""
    owners: list[Any] = []
    if inspect.isclass(factory):
        owners = [vars(base)["__init__"] for base in factory.__mro__[:-1] if "__init__" in vars(base)]
    kinds: dict[str, set[str]] = {}
    for owner in owners or [factory]:
        try:
            parameters = inspect.signature(owner).parameters
        except (TypeError, ValueError):
            continue
        for name, parameter in parameters.items():
            annotation = parameter.annotation
            text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
            found = {part.strip() for part in text.split("|")}
            if found <= _KINDS:
                kinds.setdefault(name, found)
    return kinds


def fitting(where: str, value: Any, kinds: set[str]) -> Any:
    """A plain value converted to one of ``kinds``; other values (None, lists, sections) are returned unchanged."""
    if isinstance(value, bool):
        return _truth(where, value, kinds)
    if isinstance(value, int | float):
        return _number(where, value, kinds)
    return _word(where, value, kinds) if isinstance(value, str) else value


def _truth(where: str, value: bool, kinds: set[str]) -> bool:
    if "bool" not in kinds:
        wanted = "a number" if kinds & {"int", "float"} else "text; put it in quotes"
        raise UserError(f"{where} is {str(value).lower()}, expected {wanted}")
    return value


def _number(where: str, value: int | float, kinds: set[str]) -> Any:
    if "float" in kinds or (isinstance(value, int) and "int" in kinds):
        return value
    if "int" in kinds:
        if value != int(value):
            raise UserError(f"{where} is {value}, expected a whole number")
        return int(value)
    if kinds & _TEXT:
        if isinstance(value, float):  # its spelling is lost: 1.10, 1e3
            raise UserError(f"{where} is the number {value}, expected text; put it in quotes")
        return str(value)  # a folder called 2024
    if "bool" in kinds and value not in (0, 1):
        raise UserError(f"{where} is {value}, expected true or false")
    return bool(value) if "bool" in kinds else value


def _word(where: str, value: str, kinds: set[str]) -> Any:
    if kinds & _TEXT:
        return value
    for kind, read in (("int", int), ("float", float)):
        if kind in kinds:
            try:
                return read(value)
            except ValueError:
                continue
    if "bool" in kinds and value.lower() in _TRUTH:
        return _TRUTH[value.lower()]
    wanted = " or ".join(
        words
        for kind, words in (("int", "a whole number"), ("float", "a number"), ("bool", "true or false"))
        if kind in kinds and not (kind == "int" and "float" in kinds)
    )
    raise UserError(f"{where} is {value!r}, expected {wanted or 'nothing'}")
