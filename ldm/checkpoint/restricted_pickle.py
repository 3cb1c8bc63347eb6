"""Reader for pickled checkpoints that executes no code from them.

A pickle names the functions to call. This reader only resolves functions that rebuild tensors and plain containers.
Checkpoints of training frameworks also refer to classes of callbacks and settings; these become inert objects, so that
the weights next to them can be read. Every other name is refused.
"""

from __future__ import annotations

import pickle
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct as _numpy_reconstruct  # type: ignore[attr-defined]
from numpy._core.multiarray import scalar as _numpy_scalar  # type: ignore[attr-defined]

from ldm.errors import UserError, first_line
from ldm.files import ZIP_DAMAGE, verify_zip

MAX_ENTRIES = 2_000_000
"""A file with more records is refused as damaged or malicious (the largest models have thousands)."""

MAX_EXPANSION = 16
"""Maximum ratio of unpacked size to file size; torch itself stores tensors uncompressed."""

FOREIGN_PACKAGES = ("pytorch_lightning", "lightning", "lightning_fabric", "omegaconf", "callbacks", "main", "ldm")
FOREIGN_NAMES = {
    ("argparse", "Namespace"),
    ("collections", "defaultdict"),
    ("collections", "Counter"),
    ("typing", "Any"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib", "Path"),
}


class Foreign(dict[Any, Any]):
    """Inert replacement for an object of a class that is not loaded; keeps only its named items."""

    foreign_name = "?"

    def __new__(cls, *args: Any, **kwargs: Any) -> Foreign:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Discard the state of the object."""

    def append(self, item: Any) -> None:
        """Discard an item that the pickle adds to a list or a set."""

    extend = add = append
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__
    __ne__ = object.__ne__

    def __repr__(self) -> str:
        return f"<{self.foreign_name}>"


def _reconstructor(cls: type, base: type, state: Any) -> Any:
    """Replacement of ``copyreg._reconstructor`` of old pickle protocols, for `Foreign` objects only."""
    if not (isinstance(cls, type) and issubclass(cls, Foreign)):
        raise UserError(f"the checkpoint rebuilds an object of {cls!r}, which is not allowed")
    return cls()


def _encode(text: str, encoding: str = "utf-8") -> bytes:
    """Replacement of ``_codecs.encode``, which protocol 2 calls to rebuild bytes."""
    if encoding not in ("latin1", "latin-1", "utf-8", "utf8", "ascii"):
        raise UserError(f"the checkpoint asks for the text encoding '{encoding}', which is not allowed")
    return text.encode(encoding)


def _bytes(value: Any = b"") -> bytes:
    """Replacement of ``bytes``, which would allocate any amount of memory for an int argument."""
    return bytes(value) if isinstance(value, bytes | list | tuple) else b""


def _torch_names() -> dict[tuple[str, str], Any]:
    names: dict[tuple[str, str], Any] = {
        ("torch", "Size"): torch.Size,
        ("torch", "device"): torch.device,
        ("torch", "Tensor"): torch.Tensor,
        ("torch.nn.parameter", "Parameter"): torch.nn.Parameter,
    }
    for rebuild in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter"):
        names["torch._utils", rebuild] = getattr(torch._utils, rebuild)
    for name, value in vars(torch).items():
        if isinstance(value, torch.dtype) or (name.endswith("Storage") and isinstance(value, type)):
            names["torch", name] = value
    for storage in ("TypedStorage", "UntypedStorage"):
        names["torch.storage", storage] = getattr(torch.storage, storage)
    return names


def _plain_names() -> dict[tuple[str, str], Any]:
    names: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("_codecs", "encode"): _encode,
        ("copyreg", "_reconstructor"): _reconstructor,
        ("builtins", "bytes"): _bytes,
        ("builtins", "object"): object,
        ("builtins", "NoneType"): type(None),
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }
    for kind in (dict, list, tuple, set, frozenset, int, float, complex, str, bool):
        names["builtins", kind.__name__] = kind
    names["builtins", "long"], names["builtins", "unicode"] = int, str  # their names in protocol 2
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names[module, "scalar"] = _numpy_scalar
        names[module, "_reconstruct"] = _numpy_reconstruct
    for name in dir(np.dtypes):
        if name.endswith("DType"):
            names["numpy.dtypes", name] = getattr(np.dtypes, name)
    for number in (np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.float16, np.float32, np.float64):
        names["numpy", number.__name__] = number
    return names


ADMITTED: dict[tuple[str, str], Any] = {**_torch_names(), **_plain_names()}
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class RestrictedUnpickler(pickle.Unpickler):
    """Resolves a name to an allowed function or to an inert `Foreign` class, and refuses all other names."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        module_name = _PYTHON_2.get(module_name, module_name)
        key = (module_name, global_name)
        if key in ADMITTED:
            return ADMITTED[key]
        if module_name.partition(".")[0] in FOREIGN_PACKAGES or key in FOREIGN_NAMES:
            return type(global_name.rpartition(".")[2], (Foreign,), {"foreign_name": f"{module_name}.{global_name}"})
        raise UserError(f"it asks for '{module_name}.{global_name}', which a checkpoint has no need of")


def _pickle_module() -> ModuleType:
    """A replacement of the pickle module for ``torch.load``, with restricted functions only."""
    module = ModuleType("restricted_pickle")

    def load(file: Any, **options: Any) -> Any:
        return RestrictedUnpickler(file, **options).load()

    members: dict[str, Callable[..., Any]] = {"Unpickler": RestrictedUnpickler, "load": load}
    vars(module).update(members)
    return module


def load_pickled(path: Path) -> Any:
    """The content of a ``torch.save`` file, tensors on the CPU, without executing code from it.

    ``torch.load`` with ``weights_only`` is tried first; :class:`RestrictedUnpickler` reads files that refer to
    framework classes.

    Raises:
        UserError: when the file has another format, is truncated, or refers to a name that is not allowed.
    """
    _check_container(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        pass  # the restricted reader below accepts more files and reports the error for the others
    try:
        return torch.load(path, map_location="cpu", pickle_module=_pickle_module(), weights_only=False)
    except UserError as error:
        raise UserError(f"checkpoint '{path}' is refused: {error}; nothing in it was run") from None
    except Exception as error:
        raise UserError(
            f"'{path}' is not a readable checkpoint (cut short or damaged?): {first_line(error)[:120]}"
        ) from None


def _check_container(path: Path) -> None:
    """Raise UserError for files that ``torch.load`` would not read as data, or that unpack to excessive size."""
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"checkpoint '{path}' is empty; copy or download it again")
    try:
        zipped = zipfile.is_zipfile(path)
    except ZIP_DAMAGE as error:
        raise UserError(f"checkpoint '{path}' is damaged: {error}; copy or download it again") from None
    if not zipped:
        with path.open("rb") as file:
            head = file.read(4)
        if head[:2] == b"PK":
            raise UserError(f"checkpoint '{path}' is cut short (its index is missing); copy or download it again")
        if tarfile.is_tarfile(path):
            raise UserError(f"'{path}' is a tar archive of a torch older than 0.1.10; save it again with a newer one")
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (*ZIP_DAMAGE, OSError) as error:
        raise UserError(f"checkpoint '{path}' is damaged: {error}; copy or download it again") from None
    if len(entries) > MAX_ENTRIES:
        raise UserError(f"checkpoint '{path}' holds {len(entries)} records, which no model needs; it is refused")
    declared = sum(entry.file_size for entry in entries)
    if declared > MAX_EXPANSION * size + 2**20:
        raise UserError(f"checkpoint '{path}' of {size} bytes would unpack to {declared} bytes; it is refused")
    names = {entry.filename.partition("/")[2] for entry in entries}
    verify_zip(path)
    if "data.pkl" not in names:
        raise UserError(f"'{path}' is a zip archive but not a torch checkpoint; name a .ckpt, .pt or .safetensors file")
    if "constants.pkl" in names:
        raise UserError(f"'{path}' is a TorchScript program, not a checkpoint; save the weights with torch.save")
