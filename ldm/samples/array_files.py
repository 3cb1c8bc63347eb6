"""Reader for arrays in `.npz` and `.pt` files that bounds their declared size and executes no code from them.

A small file can declare a large array by compression, by a false header, or by a tensor whose strides repeat one
value. The declared size is compared with the stored size before memory is allocated.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.files import ZIP_DAMAGE, require_regular_file

MAX_EXPANSION = 100  # photographs and digits compress by a factor of 2 to 10
SMALL = 2**26  # bytes; smaller arrays are accepted at any compression ratio
_DAMAGE = (*ZIP_DAMAGE, OSError)


def require_plausible(declared: int, stored: int, what: str) -> None:
    """Raise UserError when ``declared`` over ``stored`` bytes exceeds the compression ratio of any image."""
    if declared > SMALL and declared > MAX_EXPANSION * stored:
        raise UserError(f"{what} would unpack {stored:,} bytes to {declared:,}; it is refused")


@dataclass(frozen=True)
class ArrayHeader:
    """The header of an array in `.npy` format."""

    shape: tuple[int, ...]
    dtype: np.dtype
    by_columns: bool

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class NpzArchive:
    """The arrays of an `.npz` file; headers are read at once, values on demand.

    Raises UserError, without the file's name, for a file of another format or with implausible sizes, and
    FileNotFoundError for a missing file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = require_regular_file(path)
        try:
            with zipfile.ZipFile(path) as archive:
                members = {entry.filename: entry for entry in archive.infolist()}
                named = {name.removesuffix(".npy"): entry for name, entry in members.items() if name.endswith(".npy")}
                self.headers = {name: self._header(archive, entry) for name, entry in named.items()}
        except UserError:
            raise
        except _DAMAGE as error:
            raise UserError("not a readable .npz file of plain arrays") from error
        require_plausible(sum(header.nbytes for header in self.headers.values()), size, "the file")

    @staticmethod
    def _header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> ArrayHeader:
        with archive.open(entry) as member:
            header = read_npy_header(member)
            if entry.file_size != member.tell() + header.nbytes:
                raise UserError(f"{entry.filename} holds {entry.file_size} bytes; its shape is {header.shape}")
        return header

    def array(self, name: str) -> np.ndarray:
        """One complete array."""
        header = self.headers[name]
        with self.values(name) as member:
            flat = np.frombuffer(read_exactly(member, header.nbytes, self.path), header.dtype)
            read_exactly(member, 0, self.path)
        array = flat.reshape(header.shape, order="F" if header.by_columns else "C")
        return array.astype(header.dtype.newbyteorder("="))

    @contextmanager
    def values(self, name: str) -> Iterator[IO[bytes]]:
        """A stream of one array's bytes after its header."""
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as member:
            read_npy_header(member)
            yield member


#: Names of the arrays of images and labels in `.npz` files: DPImageBench's, and guided-diffusion's.
NPZ_NAMES = (("x", "y"), ("arr_0", "arr_1"))


def npz_names(archive: NpzArchive) -> tuple[str, str | None]:
    """Names of the images and of the labels (None without) in an `.npz` file. Raises UserError without images."""
    for images, labels in NPZ_NAMES:
        if images in archive.headers:
            return images, labels if labels in archive.headers else None
    raise UserError(
        f"no 'x' in this file (it holds {sorted(archive.headers)}); expected 'x' (N, H, W, C) and 'y', "
        "or 'arr_0' and 'arr_1'"
    )


def read_npy_header(member: IO[bytes]) -> ArrayHeader:
    """Read the `.npy` header at the start of a stream. Raises UserError for object arrays and impossible shapes."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(member)
    if dtype.hasobject:
        raise UserError("an array of objects; expected numbers")
    if any(length < 0 for length in shape):
        raise UserError(f"an array of shape {shape}")
    return ArrayHeader(tuple(int(length) for length in shape), dtype, bool(by_columns))


def read_exactly(member: IO[bytes], size: int, path: Path) -> bytes:
    """The next ``size`` bytes of an archive member; size 0 at the end makes zipfile verify the checksum."""
    try:
        data = member.read(size or 1)
    except _DAMAGE as error:
        raise UserError(f"{path}: is damaged ({error})") from None
    if size and len(data) < size:
        raise UserError(f"{path}: is cut short")
    return data


def is_mapped(path: Path) -> bool:
    """Whether a torch file can be memory-mapped; files from torch before 1.6 are not zip archives and cannot."""
    return zipfile.is_zipfile(path)


def load_torch(path: Path) -> Any:
    """The content of a `.pt` file, memory-mapped where possible; only tensors and plain values are loaded.

    Raises UserError, without the file's name, for a file of another format and for tensors larger than their storage,
    and FileNotFoundError for a missing file.
    """
    size = require_regular_file(path)
    try:
        mapped = is_mapped(path)
        if mapped:
            with zipfile.ZipFile(path) as archive:
                require_plausible(sum(entry.file_size for entry in archive.infolist()), size, "the file")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise any exception
        raise UserError(
            "not a readable sample file; expected a torch file that holds only tensors and plain values"
        ) from error
    if isinstance(content, Mapping):
        for name, value in content.items():
            if isinstance(value, Tensor):
                require_stored(value, str(name))
    return content


def require_stored(tensor: Tensor, name: str) -> None:
    """Raise UserError for a tensor that repeats stored values through its strides, or is not a plain tensor."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise UserError(f"{name!r} is no dense tensor of values")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UserError(f"{name!r} claims {tensor.numel():,} values and stores fewer; save it with .contiguous()")
