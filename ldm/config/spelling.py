"""Plain YAML values that are names but would be read as numbers: a folder 007, a version 1.10, a time 12:30.

YAML 1.1 reads ``007`` as 7 (octal) and ``12:30`` as 750 (base 60). Values of keys that name files keep their text;
elsewhere such spellings are refused, because the number is not the one that was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

from ldm.errors import UserError

_NAMES_A_FILE = re.compile(r"(.*_)?(path|root|dir|datadir|dirpath|logdir|file|filename|filelist|folder|name|base)")
_LIKE_A_NUMBER = re.compile(r"[-+]?\.?\d[\w.:+-]*")
_OTHER_NUMBER = re.compile(r"[-+]?(0[0-9_]+|0x[0-9a-fA-F_]+|0b[01_]+|[1-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")


def with_spelling(text: str, where: str) -> str:
    """YAML text in which number-like values of keys that name files are quoted, so that they keep their spelling.

    Raises UserError, naming the line, for a value elsewhere whose number is not the one that was written.
    """
    quoted: dict[int, int] = {}
    for key, node in _scalars(yaml.compose(text, Loader=yaml.SafeLoader), "", set()):
        if node.style is None and _LIKE_A_NUMBER.fullmatch(node.value):
            if names_a_file(key):
                quoted[node.end_mark.index - len(node.value)] = node.end_mark.index  # the start may be an anchor
            else:
                _refuse_other_number(node.value, f"{where}, line {node.start_mark.line + 1}")
    for start in sorted(quoted, reverse=True):
        stop = quoted[start]
        text = f"{text[:start]}'{text[start:stop]}'{text[stop:]}"
    return text


def setting_with_spelling(key: str, value: str) -> str:
    """The value of a setting ``key=value``, quoted like the values of a file. Raises UserError."""
    if not _LIKE_A_NUMBER.fullmatch(value):
        return value
    if names_a_file(key.rpartition(".")[2]):
        return f"'{value}'"
    _refuse_other_number(value, f"'{key}={value}'")
    return value


def names_a_file(key: str) -> bool:
    """Whether the values of a key are names of files, folders or other things, and never numbers."""
    return _NAMES_A_FILE.fullmatch(key) is not None


def _refuse_other_number(value: str, where: str) -> None:
    if _OTHER_NUMBER.fullmatch(value) and isinstance(number := yaml.safe_load(value), int | float):
        advice = f"quote it ('{value}'), or write {number}"
        raise UserError(f"{where}: {value} would be read as the number {number}; {advice}")


def _scalars(node: yaml.Node | None, key: str, seen: set[int]) -> Iterator[tuple[str, yaml.ScalarNode]]:
    """Every scalar value with its key; the items of a list have the key of the list."""
    if isinstance(node, yaml.ScalarNode):
        yield key, node
    elif node is not None and id(node) not in seen:
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                yield from _scalars(value, str(name.value), seen)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                yield from _scalars(item, key, seen)
