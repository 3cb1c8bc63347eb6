"""Posterior moments of a fixed autoencoder, computed once for a whole data set and read from disk afterwards."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

from ldm.data.base import cache_home, digest
from ldm.data.records import FingerprintedRecords
from ldm.errors import UserError
from ldm.files import require_regular_file

log = logging.getLogger(__name__)

VERSION = 1
STORED = {torch.float32: np.float32, torch.float16: np.float16}
_WIDEST = {"i": np.int64, "u": np.int64, "f": np.float64}
INDEX = "index.json"
MAX_INDEX = 2**20  # bytes


def why_not_cacheable(dataset: object) -> str | None:
    """Return the reason why the latents of a data set must not be cached, or None when they may be."""
    if not hasattr(dataset, "__len__"):
        return "it has no length"
    if not callable(getattr(dataset, "fingerprint", None)):
        return "it has no fingerprint() that tells its records from others"
    if not getattr(dataset, "deterministic", False):
        return "its items change from one reading to the next (random augmentation)"
    return None


class LatentCache(Dataset[dict[str, Any]]):
    """A data set whose images have been replaced by their posterior moments.

    Item i is ``{"moments": float32 (2z, h, w), ...}`` with the other fields of the data set's item i. Numbers and
    arrays of one shape are stored beside the moments; other fields (captions) are read from the original data set,
    through ``annotations(i)`` when it has that method, so that no image is decoded.

    The moments of private images are as private as the images. They are stored in a folder that only its owner may
    enter (mode 0700, files 0600), and `drop` deletes them. A folder gets its final name only when it is complete; a
    damaged one is written again.

    Args:
        dataset: map-style, with ``fingerprint()`` and ``deterministic``; items have ``image`` HWC in [-1, 1].
        encode: (B, C, H, W) float32 on the CPU to moments (B, 2z, h, w); called under ``torch.no_grad``.
        key: digest of everything that ``encode`` depends on (the autoencoder's weights).
        root: parent folder; default ``<user cache>/ldm/latents``.
        batch_size: images per ``encode`` call.
        dtype: storage type of the moments, float32 or float16; items are always float32.

    Raises:
        UserError: for a data set that cannot be cached or is empty, or another dtype.
    """

    deterministic = True

    def __init__(
        self,
        dataset: FingerprintedRecords,
        encode: Callable[[Tensor], Tensor],
        key: str,
        root: str | os.PathLike[str] | None = None,
        batch_size: int = 64,
        dtype: torch.dtype = torch.float32,
    ):
        reason = why_not_cacheable(dataset)
        if reason is not None:
            raise UserError(
                f"the latents of {type(dataset).__name__} cannot be cached: {reason}; set latent_cache=false"
            )
        if dtype not in STORED:
            raise UserError(f"the latent cache stores float32 or float16, not {dtype}")
        if len(dataset) == 0:
            raise UserError(f"{type(dataset).__name__} has no records to cache; check its parameters")
        self.dataset = dataset
        self.num_classes = getattr(dataset, "num_classes", None)
        self.key = digest(VERSION, key, dataset.fingerprint(), str(dtype))
        self.path = (Path(root) if root is not None else cache_home() / "ldm" / "latents") / self.key
        self._arrays: dict[str, np.ndarray] | None = None
        if not self._is_intact():
            self._build(encode, batch_size, STORED[dtype])
        index = read_index(self.path)
        self._fields: list[str] = index["fields"]
        self._again: list[str] = index["again"]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"the latent cache has {len(self)} records, asked for number {index}")
        index %= len(self)
        arrays = self._open()
        item = {"moments": torch.from_numpy(np.array(arrays["moments"][index], dtype=np.float32))}
        for name in self._fields:
            value = arrays[name][index]
            item[name] = value.item() if value.ndim == 0 else torch.from_numpy(np.array(value))
        if self._again:
            annotations = getattr(self.dataset, "annotations", self.dataset.__getitem__)(index)
            item.update({name: annotations[name] for name in self._again})
        return item

    def batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """The records of a whole batch at once, as `default_collate` would put their items together.

        One indexing a field is faster than one a record and field; `ldm.data.module` reads batches so.
        """
        rows = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(rows) and not -len(self) <= rows.min() <= rows.max() < len(self):
            raise IndexError(
                f"the latent cache has {len(self)} records, asked for numbers {rows.min()} to {rows.max()}"
            )
        rows = rows % len(self)
        arrays = self._open()
        batch: dict[str, Any] = {"moments": torch.from_numpy(arrays["moments"][rows].astype(np.float32))}
        for name in self._fields:
            values = arrays[name][rows]
            if values.ndim == 1:  # Python numbers, which become int64, float64 or bool
                values = values.astype(_WIDEST.get(values.dtype.kind, values.dtype))
            batch[name] = torch.from_numpy(np.ascontiguousarray(values))
        if self._again:
            annotations = getattr(self.dataset, "annotations", self.dataset.__getitem__)
            items = [annotations(int(row)) for row in rows]
            batch.update({name: default_collate([i[name] for i in items]) if items else [] for name in self._again})
        return batch

    @property
    def moments(self) -> np.ndarray:
        """The stored moments (N, 2z, h, w), memory-mapped."""
        return self._open()["moments"]

    @property
    def labels(self) -> np.ndarray:
        """The stored class labels, int64 (N,)."""
        return np.array(self._open()["class_label"], dtype=np.int64)

    def fingerprint(self) -> str:
        """Return a digest of the records and of the autoencoder that encoded them."""
        return self.key

    def drop(self) -> None:
        """Delete the stored moments; the cache is unusable afterwards."""
        self._arrays = {}
        shutil.rmtree(self.path, ignore_errors=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": None}  # each worker maps the files itself, so they are not copied

    def _open(self) -> dict[str, np.ndarray]:
        if self._arrays is None:
            names = ["moments", *self._fields]
            self._arrays = {name: np.load(self.path / _file(names, name), mmap_mode="r") for name in names}
        if not self._arrays:
            raise UserError("this latent cache has been dropped; build a new one")
        return self._arrays

    def _is_intact(self) -> bool:
        """Whether the folder exists and every file has its recorded checksum."""
        if not os.path.lexists(self.path):
            return False
        try:
            index = read_index(self.path)
            names = ["moments", *index["fields"]]
            expected = {_file(names, name) for name in names}
            item = self.dataset.annotations(0) if hasattr(self.dataset, "annotations") else self.dataset[0]
            known = set(names[1:]) | set(index["again"]) <= set(item)
            whole = expected == set(index["files"]) and all(
                _checksum(self.path / name) == crc for name, crc in index["files"].items()
            )
            shapes = [np.load(self.path / name, mmap_mode="r").shape for name in expected] if whole else []
            if known and whole and index["key"] == self.key and all(s[:1] == (len(self.dataset),) for s in shapes):
                log.info("latents are read from %s", self.path)
                return True
        except (OSError, ValueError, EOFError, UserError) as error:
            log.debug("%s: %s", self.path, error)
        log.warning("the latent cache %s is damaged and is made again", self.path)
        return False

    def _build(self, encode: Callable[[Tensor], Tensor], batch_size: int, stored: type) -> None:
        """Encode the whole data set into a temporary folder and rename it."""
        if batch_size < 1:
            raise UserError(f"the latent cache's batch_size is {batch_size}; give 1 or more")
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = Path(tempfile.mkdtemp(prefix=f".{self.key[:8]}-", dir=self.path.parent))  # mode 0700 from the start
        try:
            fields, again = self._write(folder, encode, batch_size, stored)
            sums = {path.name: _checksum(path) for path in sorted(folder.iterdir())}
            index = {"key": self.key, "fields": fields, "again": again, "files": sums}
            (folder / INDEX).write_text(json.dumps(index, indent=1))
            for path in folder.iterdir():
                path.chmod(0o600)
            if os.path.lexists(self.path) and not self._is_intact():  # another process may be reading an intact one
                if self.path.is_dir() and not self.path.is_symlink():
                    shutil.rmtree(self.path)
                else:
                    self.path.unlink()
            try:
                folder.rename(self.path)
            except OSError:
                if not self._is_intact():  # another process may have written a complete one meanwhile
                    raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        log.info("latents of %d records are kept in %s", len(self.dataset), self.path)

    def _write(
        self, folder: Path, encode: Callable[[Tensor], Tensor], batch_size: int, stored: type
    ) -> tuple[list[str], list[str]]:
        """Write ``moments`` and one array per numeric field; return the names of the stored and the other fields."""
        count = len(self.dataset)
        first = self.dataset[0]
        numeric = {name: np.asarray(value) for name, value in first.items() if name != "image" and _is_numeric(value)}
        fields = list(numeric)
        again = [name for name in first if name != "image" and name not in numeric]
        names = ["moments", *fields]
        columns = {name: np.zeros((count, *value.shape), value.dtype) for name, value in numeric.items()}
        moments: np.ndarray | None = None
        bar = tqdm(total=count, desc="encoding latents", unit="record", leave=False, disable=None)
        for start in range(0, count, batch_size):
            items = [self.dataset[i] for i in range(start, min(start + batch_size, count))]
            part = self._encoded(items, encode, batch_size)
            if moments is None:
                target = folder / _file(names, "moments")
                moments = np.lib.format.open_memmap(target, "w+", dtype=stored, shape=(count, *part.shape[1:]))
            moments[start : start + len(items)] = part
            for name in fields:
                for offset, item in enumerate(items):
                    columns[name][start + offset] = np.asarray(item[name])
            bar.update(len(items))
        bar.close()
        assert isinstance(moments, np.memmap)  # a data set without records is refused before
        moments.flush()
        for name, column in columns.items():
            np.save(folder / _file(names, name), column)
        return fields, again

    @staticmethod
    @torch.no_grad()
    def _encoded(items: list[dict[str, Any]], encode: Callable[[Tensor], Tensor], batch_size: int) -> np.ndarray:
        # The last batch is filled with copies: kernels round otherwise for other shapes, and the number of records in
        # it, hence their latents' last digits, would change with one record more.
        filled = [*items, *items[-1:] * (batch_size - len(items))]
        images = torch.stack([torch.as_tensor(item["image"]) for item in filled]).permute(0, 3, 1, 2).contiguous()
        moments = encode(images)
        if moments.ndim != 4 or len(moments) != len(filled):
            raise ValueError(f"encode gave {tuple(moments.shape)} for {tuple(images.shape)}, expected (B, 2z, h, w)")
        return moments[: len(items)].detach().float().cpu().numpy()


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a cache folder. Raises UserError, ValueError or OSError for a file not written by `LatentCache`."""
    path = folder / INDEX
    if require_regular_file(path) > MAX_INDEX:
        raise ValueError("the index is too large")
    try:
        index = json.loads(path.read_text())
    except RecursionError:
        raise ValueError("the index is too deep") from None
    lists = isinstance(index, dict) and all(
        isinstance(index.get(key), list) and all(isinstance(name, str) and name for name in index[key])
        for key in ("fields", "again")
    )
    if not lists or not isinstance(index.get("files"), dict) or not isinstance(index.get("key"), str):
        raise ValueError("the index has other fields")
    return index


def _is_numeric(value: object) -> bool:
    return isinstance(value, bool | int | float | np.number | np.ndarray | Tensor)


def _file(names: list[str], name: str) -> str:
    """Return the numbered file name of a field; numbers prevent field names from escaping the folder."""
    return f"{names.index(name):02d}.npy"


def _checksum(path: Path) -> int:
    crc = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc
