"""Base classes and helpers of the record data sets: items, sizes, channels, data roots and fingerprints."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, IterableDataset
from tqdm import tqdm

from ldm.data.draws import RecordDraws
from ldm.errors import UserError, nearest
from ldm.files import file_digest
from ldm.samples.framing import FRAMINGS, INTERPOLATIONS, to_size

DATA_ROOT_VARIABLE = "LDM_DATA_ROOT"
DIGEST_THREADS = 4
SYSTEM_DATA_DIRS = "/usr/local/share:/usr/share"  # the default of the XDG base directory specification


def cache_home() -> Path:
    """Return the user's cache folder: ``$XDG_CACHE_HOME``, else ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def to_path(value: str | os.PathLike[str] | int, option: str = "path") -> Path:
    """Return a path from a configuration or a command line, with ``~`` and ``$VARIABLES`` expanded.

    A folder called 2024 arrives as an int, because YAML and ``key:value`` arguments parse it as a number.
    Raises UserError for a value that is not a path; a number is a path only if a file or folder of that name exists.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and Path(str(value)).exists():
        value = str(value)
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{option}={value!r} is not a path; quote it in YAML, write ./{value} on a command line")
    return Path(os.path.expandvars(value)).expanduser()


def whole_number(name: str, option: str, value: object, least: int = 0) -> int:
    """Return an option of data set ``name`` as an int of at least ``least``; True, 1.0 and "1" are refused."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise UserError(f"{name}: {option}={value!r}; give a whole number from {least}")
    return int(value)


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder that holds data sets: ``root``, else ``$LDM_DATA_ROOT``, else the user's cache folder."""
    if root is not None:
        return to_path(root, "root")
    from_environment = os.environ.get(DATA_ROOT_VARIABLE)
    return Path(from_environment).expanduser() if from_environment else cache_home()


def root_or_datadir(
    name: str, root: str | os.PathLike[str] | None, datadir: str | os.PathLike[str] | None
) -> str | os.PathLike[str] | None:
    """Return ``root``, or ``datadir`` (the older name; a relative one is below the working or the cache folder)."""
    if root is not None and datadir is not None and to_path(root, "root") != to_path(datadir, "datadir"):
        raise UserError(f"{name}: root={str(root)!r} and datadir={str(datadir)!r} disagree; give root only")
    if root is not None or datadir is None:
        return root
    path = to_path(datadir, "datadir")
    return path if path.is_absolute() or path.exists() else data_root() / path


def system_data_dirs() -> list[Path]:
    """Return the folders in which operating system packages install shared data."""
    return [Path(entry) for entry in (os.environ.get("XDG_DATA_DIRS") or SYSTEM_DATA_DIRS).split(":") if entry]


def digest(*parts: object) -> str:
    """Return a short stable digest of strings, numbers and numpy arrays (dtype, shape and content)."""
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            state.update(f"{part.dtype.str}{part.shape}".encode())
            state.update(np.ascontiguousarray(part).data)
        else:
            state.update(repr(part).encode())
        state.update(b"\0")
    return state.hexdigest()[:32]


def content_digests(paths: Iterable[Path]) -> list[str]:
    """Return the SHA-256 of each file's bytes, in order; several files are read in parallel, with a progress bar.

    Names, sizes and modification times are not enough, because a copied folder keeps those of the original. Every byte
    is read on each call, so that two folders with different contents never share a cache.
    """
    paths = list(paths)
    with ThreadPoolExecutor(DIGEST_THREADS) as pool:
        found = pool.map(file_digest, paths)
        return list(tqdm(found, "checking files", len(paths), leave=False, unit="file", delay=5, disable=None))


class FrameOptions(TypedDict, total=False):
    """The options of `RecordOptions` that no data set takes by position or changes."""

    channels: int | None
    framing: str | None


class RecordOptions(FrameOptions, total=False):
    """Options that every data set passes to `RecordDataset`; documented there."""

    interpolation: str | None
    config: Mapping[str, Any] | None


class RecordDataset(Dataset[dict[str, Any]]):
    """Base of the data sets: one item is one person's record.

    A subclass implements ``__len__``, ``label(index) -> int``, ``pixels(index) -> uint8 (H, W) or (H, W, 3)`` and
    ``source_digest() -> str``; this class handles size, channels, flips and the form of the items. A data set with
    annotations other than a class overrides ``annotations`` (and ``labels``, which returns None without classes).

    Args:
        size: side of the square image in pixels; None is the set's ``default_size`` (None again: as stored).
        flip_p: probability of a random mirror image; a set of digits or letters, and every evaluation set, refuses
            a value above 0 because the label would no longer fit or the measurement would no longer repeat.
        channels: 1 (luminance) or 3; default the set's own, 3 for most.
        framing: how ``size`` is reached: "resize" (shorter side, then centre crop), "pad" (black border) or "crop"
            (the centre, pixels as they are); default the set's ``default_framing``.
        interpolation: "nearest", "bilinear" (or "linear"), "bicubic" or "lanczos"; default the set's own.
        config: mapping with the key ``size``, the older way of passing it.

    Attributes:
        class_names: names of the labels 0, 1, ..., where the files give them. is_evaluation: True for a data set used
            in evaluation; its items must not change between reads.

    Raises:
        UserError: for an invalid option.
    """

    num_classes: int | None = None
    class_names: Sequence[str] = ()
    mirrorable = True  # False: a mirror image may be another class
    is_evaluation = False
    default_size: int | None = None
    default_channels = 3
    default_framing = "resize"
    default_interpolation = "bicubic"

    def __init__(
        self,
        size: int | None = None,
        flip_p: float = 0.0,
        *,
        channels: int | None = None,
        framing: str | None = None,
        interpolation: str | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        name = type(self).__name__
        size = size_from_config(size, config, name)
        size = self.default_size if size is None else size
        channels = self.default_channels if channels is None else channels
        framing = self.default_framing if framing is None else framing
        interpolation = self.default_interpolation if interpolation is None else interpolation
        if isinstance(channels, bool) or channels not in (1, 3):
            raise UserError(f"{name}: channels={channels!r}; give 1 (grey) or 3 (colour)")
        check_choice(name, "framing", framing, FRAMINGS)
        check_choice(name, "interpolation", interpolation, INTERPOLATIONS)
        if isinstance(flip_p, bool) or not isinstance(flip_p, int | float) or not 0.0 <= flip_p <= 1.0:
            raise UserError(f"{name}: flip_p={flip_p!r} is not a probability; give a number from 0 to 1")
        if flip_p > 0 and not self.mirrorable:
            raise UserError(f"{name}: flip_p={flip_p}, but a mirrored image of this set is wrong; give flip_p=0")
        if flip_p > 0 and self.is_evaluation:
            raise UserError(f"{name}: flip_p={flip_p} in an evaluation set; give flip_p=0")
        self.size = None if size is None else whole_number(name, "size", size, 1)
        self.flip_p = float(flip_p)
        self.channels = int(channels)
        self.framing = framing
        self.interpolation = interpolation
        self._draws = RecordDraws()
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def label(self, index: int) -> int:
        """Return the class of record ``index``, 0 to ``num_classes - 1``."""
        raise NotImplementedError

    def pixels(self, index: int) -> np.ndarray:
        """Return the stored image of record ``index``: uint8, (H, W) or (H, W, 3)."""
        raise NotImplementedError

    def source_digest(self) -> str:
        """Return a digest of the stored records and their order."""
        raise NotImplementedError

    @property
    def deterministic(self) -> bool:
        """True when the items do not change between reads (no random augmentation)."""
        return self.flip_p == 0.0

    def annotations(self, index: int) -> dict[str, Any]:
        """Return the fields of item ``index`` other than its image; the latent cache reads captions with it."""
        return {"class_label": int(self.label(index))}

    @property
    def labels(self) -> np.ndarray | None:
        """All labels, int64 (N,), without decoding images where the subclass allows it; None without classes."""
        return np.fromiter((self.label(i) for i in range(len(self))), dtype=np.int64, count=len(self))

    def fingerprint(self) -> str:
        """Return a stable digest of the stored records, their order, size, channels, framing and flips."""
        if self._fingerprint is None:
            shape = (self.size, self.channels, self.framing, INTERPOLATIONS[self.interpolation].name, self.flip_p)
            self._fingerprint = digest(type(self).__name__, len(self), shape, self.source_digest())
        return self._fingerprint

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = self._checked(index)
        image = to_size(self.pixels(index), self.size, self.framing, self.interpolation)
        if self.flip_p > 0 and self._draws.uniform(index)[0] < self.flip_p:
            image = image[:, ::-1]
        return {"image": to_item(image, self.channels), **self.annotations(index)}

    def _checked(self, index: int) -> int:
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"{type(self).__name__} has {len(self)} records, asked for number {index}")
        return index % len(self)


class ArrayDataset(RecordDataset):
    """A record data set held in memory.

    Args:
        images: uint8 (N, H, W) or (N, H, W, 3).
        labels: integers (N,).
        source: name of the files the records come from, and ``rows`` (N,) their positions in it; used to detect
            records that two data sets share.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        size: int | None = None,
        flip_p: float = 0.0,
        *,
        source: str = "",
        rows: np.ndarray | None = None,
        **options: Unpack[RecordOptions],
    ):
        super().__init__(size, flip_p, **options)
        if len(images) != len(labels):
            raise UserError(f"{type(self).__name__}: {len(images)} images but {len(labels)} labels; check the files")
        self._images = images
        self._labels = np.asarray(labels, dtype=np.int64)
        self.source = source
        self.rows = np.arange(len(images)) if rows is None else np.asarray(rows)

    def __len__(self) -> int:
        return len(self._images)

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def pixels(self, index: int) -> np.ndarray:
        return self._images[index]

    @property
    def labels(self) -> np.ndarray:
        return self._labels.copy()

    def source_digest(self) -> str:
        return digest(self._images, self._labels)


def size_from_config(size: int | None, config: Mapping[str, Any] | None, name: str) -> int | None:
    """Return ``size``, or ``config["size"]`` (the older spelling); any other key of ``config`` is an error."""
    if config is None:
        return size
    if not isinstance(config, Mapping) and not hasattr(config, "keys"):
        raise UserError(f"{name}: config={config!r} is not a mapping; write size=32 instead")
    unknown = [str(key) for key in config if key != "size"]
    if unknown:
        raise UserError(f"{name}: config has no key {unknown[0]!r}{nearest(unknown[0], ['size'])}")
    if size is not None and config.get("size", size) != size:
        raise UserError(f"{name}: size={size} and config.size={config['size']} disagree; give size only")
    return config.get("size", size)


def check_choice(name: str, option: str, value: object, known: Iterable[str]) -> None:
    """Raise UserError when an option of data set ``name`` is not one of its known values."""
    known = list(known)
    if value not in known:
        raise UserError(f"{name}: {option}={value!r}{nearest(str(value), known)}; one of {', '.join(known)}")


def to_item(image: np.ndarray, channels: int) -> np.ndarray:
    """Return a uint8 image (H, W[, 3]) as float32 (H, W, channels) in [-1, 1]."""
    if image.ndim == 2:
        image = image[:, :, None]
    if image.shape[2] != channels:
        if channels == 1:
            image = np.asarray(Image.fromarray(np.ascontiguousarray(image)).convert("L"))[:, :, None]
        else:
            image = np.repeat(image, channels, axis=2)
    return np.ascontiguousarray(image, dtype=np.float32) / np.float32(127.5) - np.float32(1.0)


def stratified_split(labels: np.ndarray, held_out: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Deterministic stratified split of the positions 0..N-1 into (kept, held out), both sorted.

    Args:
        labels: integers (N,).
        held_out: number of positions in the second part, 0 to N.
        seed: public constant that selects the split.
    """
    labels = np.asarray(labels)
    if not 0 <= held_out <= len(labels):
        raise UserError(
            f"{held_out} records cannot be held out of {len(labels)}; give a number from 0 to {len(labels)}"
        )
    random = np.random.Generator(np.random.Philox(seed))
    rank = np.empty(len(labels))
    for value in np.unique(labels):
        members = np.flatnonzero(labels == value)
        # Spread the ranks of each class evenly over [0, 1), so that every prefix of the common order is stratified.
        rank[random.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
    order = np.argsort(rank, kind="stable")
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def find_files(names: Sequence[Sequence[str]], folders: Iterable[Path]) -> list[Path] | None:
    """Return the files of the first folder that has one of each group of alternative names, or None."""
    for folder in folders:
        found = [next((folder / name for name in group if (folder / name).is_file()), None) for group in names]
        if all(path is not None for path in found):
            return [path for path in found if path is not None]
    return None


class Txt2ImgIterableBaseDataset(IterableDataset[Mapping[str, object]]):
    """Base of iterable data sets of (text, image) pairs, as in the original latent diffusion code.

    A subclass implements ``__iter__``; ``len`` returns ``num_records``, and ``valid_ids`` are the ids to draw from.
    """

    def __init__(self, num_records: int = 0, valid_ids: Sequence[int] | None = None, size: int = 256):
        super().__init__()
        self.num_records = num_records
        self.valid_ids = valid_ids
        self.sample_ids = valid_ids
        self.size = size

    def __len__(self) -> int:
        return self.num_records

    def __iter__(self) -> Iterator[Mapping[str, object]]:
        raise NotImplementedError
