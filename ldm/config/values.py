"""Values of a configuration brought to the kinds that a constructor is annotated with: numbers, words, truth values.

YAML has its own idea of what a word is (a folder called 2024 is a number to it, 1e-3 is text), and Python holds 1, 1.0
and True for equal. Only plain annotations are acted on: ``int``, ``float``, ``bool``, ``str`` and paths, and unions.
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
    """``params`` with each value of the kind that its parameter of ``factory`` is annotated with.

    Raises UserError, naming the parameter, for a value that is of another kind and cannot be read as one.
    """
    kinds = annotated_kinds(factory)
    return {
        name: fitting(f"{target}: {name}", value, kinds[name]) if name in kinds else value
        for name, value in params.items()
    }


def annotated_kinds(factory: Any) -> dict[str, set[str]]:
    """The kinds of the parameters that are annotated plainly, also of the constructors that ``**kwargs`` go on to."""
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
    """A plain value as one of ``kinds``; other values (None, lists, sections) are left to the constructor."""
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
