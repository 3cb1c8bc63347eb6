"""Pickles that come with data sets (lists of names, arrays of pixels), read without running anything from them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core.multiarray import _reconstruct  # type: ignore[attr-defined]

from ldm.errors import UserError
from ldm.files import require_regular_file


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Stands in for ``_codecs.encode``, by which old pickles write bytes."""
    return text.encode("latin1")


def _frombuffer(data: Any, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    """Stands in for numpy's own function of this name, by which newer pickles write arrays."""
    return np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C")


ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("_codecs", "encode"): _encode,
}


class PlainUnpickler(pickle.Unpickler):
    """Gives out nothing but what rebuilds arrays; strings of Python 2 are read as latin-1."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return ALLOWED[module, name]


def read_pickle(path: str | Path) -> Any:
    """Return what a pickle of numbers, strings, lists, dicts and arrays holds.

    Raises:
        UserError: when the file cannot be read, or asks for anything else.
    """
    try:
        require_regular_file(path)
        return PlainUnpickler(io.BytesIO(Path(path).read_bytes()), encoding="latin1").load()
    except Exception as error:  # a broken pickle fails in every way there is
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a pickle of plain data ({reason}); fetch the file again") from None
