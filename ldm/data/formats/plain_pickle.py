"""Safe reader for the pickles of data sets (lists of names, arrays of pixels): no code in them is executed."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core.multiarray import _reconstruct  # type: ignore[attr-defined]

from ldm.errors import UserError, first_line
from ldm.files import require_regular_file


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Replacement of ``_codecs.encode``, which old pickles call to rebuild bytes."""
    return text.encode("latin1")


def _frombuffer(data: Any, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    """Replacement of numpy's function of this name, which newer pickles call to rebuild arrays."""
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
    """Resolves only the functions that rebuild arrays; Python 2 strings are decoded as latin-1."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return ALLOWED[module, name]


def read_pickle(path: str | Path) -> Any:
    """Return the content of a pickle of numbers, strings, lists, dicts and arrays.

    Raises:
        UserError: when the file cannot be read, or refers to any other type or function.
    """
    try:
        require_regular_file(path)
        return PlainUnpickler(io.BytesIO(Path(path).read_bytes()), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise any exception
        raise UserError(f"{path} is not a pickle of plain data ({first_line(error)}); fetch the file again") from None
