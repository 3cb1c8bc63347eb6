"""Key listings of the full-size public models, and a strict comparison with what we build."""

from __future__ import annotations

import ast
import gzip
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from torch import Tensor

FOLDER = Path(__file__).parent / "fixtures" / "state_dicts"


@cache
def _lines(name: str) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    text = gzip.decompress((FOLDER / f"{name}.keys.txt.gz").read_bytes()).decode()
    rows = (line.split("\t") for line in text.splitlines())
    return tuple((key, dtype, tuple(ast.literal_eval(shape))) for key, dtype, shape in rows)


def names() -> list[str]:
    """All listings, e.g. ``dpldm_emnist32-dp-eps10``."""
    return sorted(path.name.removesuffix(".keys.txt.gz") for path in FOLDER.glob("*.keys.txt.gz"))


def listing(name: str, prefix: str = "") -> dict[str, tuple[str, tuple[int, ...]]]:
    """Key -> (dtype name, shape), in file order, for the keys with this prefix, which is taken off."""
    return {key.removeprefix(prefix): (dtype, shape) for key, dtype, shape in _lines(name) if key.startswith(prefix)}


def assert_same_keys(state_dict: Mapping[str, Tensor], name: str, prefix: str = "", ignore: str = "\0") -> None:
    """Names, types and shapes must agree one to one; listed keys that start with ``ignore`` need not exist.

    Works for modules built on the meta device. The error shows the first few differences of each kind.
    """
    want = {key: row for key, row in listing(name, prefix).items() if not key.startswith(ignore)}
    assert want, f"{name} has no keys with prefix {prefix!r}"
    got = {key: (str(value.dtype).removeprefix("torch."), tuple(value.shape)) for key, value in state_dict.items()}
    problems = {
        "missing": [key for key in want if key not in got],
        "unexpected": [key for key in got if key not in want],
        "different": [
            f"{key}: {got[key]} instead of {want[key]}" for key in want if key in got and got[key] != want[key]
        ],
    }
    found = {kind: (len(keys), keys[:5]) for kind, keys in problems.items() if keys}
    assert not found, f"{name}: {found}"
