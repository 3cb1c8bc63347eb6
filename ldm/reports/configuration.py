"""`configuration_page`: every key that the shipped configurations can set, read from the constructors."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ldm.config import accepted_parameters, canonical_target, get_obj_from_str

#: Sections without a target of their own, and the class that takes them.
SECTIONS = {
    "dp_config": "ldm.privacy.config.DPConfig",
    "ddconfig": "ldm.modules.diffusionmodules.model.Encoder",
    "sampling": "ldm.models.diffusion.sampling_section.SamplingSection",
}
REQUIRED = "required"
UNKNOWN = "–"

_INTRODUCTION = """\
# Every key of a configuration

Written by `python scripts/configuration.py --write` from the constructors; do not edit it by hand. A section
`{target: dotted.name, params: {...}}` builds one object, and `params` may hold the keys listed under its target. A key
that is not listed is refused, with the nearest one that is. Types are Python's; a default of None means that the class
decides, as its line says. `lightning.trainer` takes every argument of Lightning's Trainer, `lightning.callbacks`
sections with a target of `callbacks`; `base_learning_rate` stands beside `model.target`, and the
section `sampling` beside `model`.
"""


@dataclass(frozen=True)
class Key:
    """One key of a section: its type, its default in Python's notation (or `REQUIRED`), and a one-line description."""

    name: str
    kind: str
    default: str
    line: str


def configuration_page(folders: Iterable[Path]) -> str:
    """The Markdown page on all targets that YAML files below ``folders`` name, and on `SECTIONS`."""
    tables: dict[tuple[Key, ...], list[str]] = {}
    for target in sorted(shipped_targets(folders)):
        if canonical_target(target).partition(".")[0] in ("ldm", "callbacks"):
            tables.setdefault(tuple(keys_of(get_obj_from_str(target))), []).append(target)
    for name, target in SECTIONS.items():
        tables[tuple(keys_of(get_obj_from_str(target)))] = [name]
    return "\n".join([_INTRODUCTION, *(_table(names, keys) for keys, names in tables.items())])


def shipped_targets(folders: Iterable[Path]) -> set[str]:
    """The dotted names of all targets in the YAML files below ``folders``."""
    files = (path for folder in folders for path in Path(folder).rglob("*.yaml"))
    return {target for path in files for target in _targets(yaml.safe_load(path.read_text(encoding="utf-8")))}


def keys_of(factory: Any) -> list[Key]:
    """The keys that a class takes, in the order of its constructor, then those of its options and of its bases.

    Lines come from the ``Args:`` of the class docstrings and the ``#:`` comments of dataclass fields, the nearest
    class first. A key without a line has an empty one.
    """
    names, required, _ = accepted_parameters(factory)
    lines = _lines(factory)
    found: dict[str, Key] = {}
    for owner in _owners(factory):
        for parameter in inspect.signature(owner).parameters.values():
            name = parameter.name
            if name in names and name not in found:
                default = REQUIRED if name in required else _default(parameter.default)
                found[name] = Key(name, _kind(parameter.annotation), default, lines.get(name, ""))
    return list(found.values())


def _owners(factory: Any) -> list[Any]:
    """Receivers of the arguments of ``factory``: its constructors in this project, and its groups of options."""
    ours = [base for base in factory.__mro__ if base.__module__.partition(".")[0] in ("ldm", "callbacks")]
    own = [base for base in ours if "__init__" in vars(base)]
    return [*own[:1], *getattr(factory, "OPTION_GROUPS", ()), *own[1:]]


def _lines(factory: Any) -> dict[str, str]:
    lines: dict[str, str] = {}
    groups = getattr(factory, "OPTION_GROUPS", ())
    for owner in (*factory.__mro__, *groups):
        described = dict(_described_arguments(vars(owner).get("__doc__") or ""))
        if isinstance(owner, type) and dataclasses.is_dataclass(owner):
            described.update(_described_fields(inspect.getsource(owner)))
        for name, line in described.items():
            if not re.match(r"(see|as in) `", line):  # the class that it refers to is one of the bases
                lines.setdefault(name, line)
    return lines


def _described_arguments(docstring: str) -> Iterator[tuple[str, str]]:
    """Names and texts of the section ``Args:``; an entry for several names counts for each."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)*)", inspect.cleandoc(docstring), flags=re.MULTILINE)
    if section is None:
        return
    entries = re.split(r"^    (?=\w)", section[1], flags=re.MULTILINE)
    for entry in filter(str.strip, entries):
        names, _, text = entry.partition(": ")
        for name in names.split(","):
            yield name.strip(), " ".join(text.split())


def _described_fields(source: str) -> Iterator[tuple[str, str]]:
    """Names and ``#:`` comments of dataclass fields."""
    for comment, name in re.findall(r"((?:^    #: .*\n)+)    (\w+):", source, flags=re.MULTILINE):
        yield name, " ".join(part.removeprefix("#:").strip() for part in map(str.strip, comment.splitlines()))


def _kind(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return UNKNOWN if annotation is inspect.Parameter.empty or text == "Any" else text


def _default(value: Any) -> str:
    return REQUIRED if value is inspect.Parameter.empty else repr(value)


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("target"), str):
            yield node["target"]
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)


def _table(names: Sequence[str], keys: Sequence[Key]) -> str:
    rows = [f"| {_code(key.name)} | {_code(key.kind)} | {_code(key.default)} | {_cell(key.line)} |" for key in keys]
    heading = "## " + ", ".join(f"`{name}`" for name in names)
    return "\n".join([heading, "", "| key | type | default | |", "|--|--|--|--|", *rows, ""])


def _code(text: str) -> str:
    return text if text in (REQUIRED, UNKNOWN) else f"`{_cell(text)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
