"""The Lightning data module that builds data sets and loaders from a configuration."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from ldm.config import instantiate_from_config
from ldm.data.records import BatchedRecords, FingerprintedRecords, SourcedRecords
from ldm.errors import UserError

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test", "predict")
DEFAULT_WORKERS = 2


class WrappedDataset(Dataset[dict[str, Any]]):
    """A thin wrapper that exposes only the length and items of a data set (the ``wrap`` option)."""

    def __init__(self, dataset: FingerprintedRecords):
        self.data = dataset

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.data[index]

    def fingerprint(self) -> str:
        """Return the wrapped data set's fingerprint."""
        return self.data.fingerprint()

    @property
    def deterministic(self) -> bool:
        """Whether the wrapped data set is deterministic."""
        return getattr(self.data, "deterministic", False)


class Collated(dict[str, Any]):
    """A batch that is put together already; `collate` passes it on."""


class InBatches(Dataset[dict[str, Any]]):
    """A data set whose loaders read whole batches by its method ``batch(indices)``."""

    def __init__(self, dataset: BatchedRecords):
        self.data = dataset

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.data[index]

    def __getitems__(self, indices: Sequence[int]) -> Collated:
        return Collated(self.data.batch(indices))


class EmptyAwareCollate:
    """Collates a list of items; an empty list gives tensors of length 0 with the template item's dtypes and shapes."""

    def __init__(self, template: Mapping[str, Any]):
        self.empty = {key: _emptied(value) for key, value in default_collate([template]).items()}

    def __call__(self, items: Sequence[Mapping[str, Any]] | Collated) -> dict[str, Any]:
        if isinstance(items, Collated):
            return collate(items)
        if len(items) == 0:
            return {key: empty.clone() if isinstance(empty, Tensor) else [] for key, empty in self.empty.items()}
        return collate(list(items))


def collate(items: list[Mapping[str, Any]] | Collated) -> Any:
    """Stack items into a batch. Raises UserError, in one line, for images of different sizes."""
    if isinstance(items, Collated):
        return dict(items)
    try:
        return default_collate(items)
    except RuntimeError as error:
        sizes = {np.shape(item["image"]) for item in items if isinstance(item, Mapping) and "image" in item}
        if len(sizes) < 2:
            raise
        shown = ", ".join("x".join(map(str, size)) for size in sorted(sizes)[:3])
        raise UserError(f"images of different sizes in one batch ({shown} ...); give the data set a size") from error


def _emptied(value: object) -> Tensor | list[object]:
    return value[:0].clone() if isinstance(value, Tensor) else []


def default_workers() -> int:
    """Return the default number of loader processes: 2, or fewer on a small machine."""
    return max(0, min(DEFAULT_WORKERS, (os.cpu_count() or 1) - 1))


def seed_worker(worker_id: int) -> None:
    """Seed numpy in a loader process from torch's worker seed, so that augmentations differ between workers."""
    np.random.seed(torch.initial_seed() % 2**32)


class DataModuleFromConfig(pl.LightningDataModule):
    """Data sets and loaders from ``{target, params}`` nodes; each data set is built once per process, on first use.

    Args:
        batch_size: items per batch of a loader (of the train loader too, unless `train_batch_sampler` is set).
        train, validation, test, predict: data set nodes, or None.
        wrap: expose only the length and items of the data sets.
        num_workers: loader processes; default 2, fewer on a small machine.
        shuffle_test_loader, shuffle_val_dataloader: read those data sets in random order.
        use_worker_init_fn: seed numpy in every worker process.
        latent_cache: whether the training command may replace the train set by its cached latents.
        encoding_batch: images that are encoded at a time for that cache.
        encoding_precision: 32, or bf16, which rounds the autoencoder's products and is faster; a cache of its own.

    Attributes:
        train_batch_sampler: an iterable of index lists (empty ones allowed) that replaces the shuffled batches of
            ``batch_size`` in the train loader.

    Raises:
        UserError: for a data set without records, and for invalid numbers.
    """

    def __init__(
        self,
        batch_size: int,
        train: Mapping[str, Any] | None = None,
        validation: Mapping[str, Any] | None = None,
        test: Mapping[str, Any] | None = None,
        predict: Mapping[str, Any] | None = None,
        wrap: bool = False,
        num_workers: int | None = None,
        shuffle_test_loader: bool = False,
        use_worker_init_fn: bool = False,
        shuffle_val_dataloader: bool = False,
        latent_cache: bool = True,
        encoding_batch: int = 64,
        encoding_precision: str = "32",
    ):
        super().__init__()
        if int(batch_size) < 1:
            raise UserError(f"data: batch_size={batch_size}; give 1 or more")
        if num_workers is not None and int(num_workers) < 0:
            raise UserError(f"data: num_workers={num_workers}; give 0 or more, or leave it out")
        self.batch_size = int(batch_size)
        self.num_workers = default_workers() if num_workers is None else int(num_workers)
        self.wrap = wrap
        self.latent_cache = latent_cache
        if int(encoding_batch) < 1:
            raise UserError(f"data: encoding_batch={encoding_batch}; give 1 or more")
        if str(encoding_precision) not in ("32", "bf16"):
            raise UserError(f"data: encoding_precision={encoding_precision}; give 32 or bf16")
        self.encoding_batch = int(encoding_batch)
        self.encoding_precision = str(encoding_precision)
        self.use_worker_init_fn = use_worker_init_fn
        self.shuffle_test_loader = shuffle_test_loader
        self.shuffle_val_dataloader = shuffle_val_dataloader
        self.train_batch_sampler: Iterable[list[int]] | None = None
        nodes = {"train": train, "validation": validation, "test": test, "predict": predict}
        self.dataset_configs = {name: node for name, node in nodes.items() if node is not None}
        self._datasets: dict[str, Dataset[dict[str, Any]]] | None = None

    @property
    def datasets(self) -> dict[str, Dataset[dict[str, Any]]]:
        """The data sets by name, built on first use."""
        if self._datasets is None:
            self._datasets = {}
            for name, node in self.dataset_configs.items():
                dataset = instantiate_from_config(node)
                if not isinstance(dataset, IterableDataset) and len(dataset) == 0:
                    raise UserError(f"data.params.{name}: {node.get('target')} has no records; check its parameters")
                self._datasets[name] = WrappedDataset(dataset) if self.wrap else dataset
            self._warn_of_overlap()
        return self._datasets

    def replace_datasets(self, replace: Callable[[str, Dataset[dict[str, Any]]], Dataset[dict[str, Any]]]) -> None:
        """Replace every data set by ``replace(name, dataset)`` (for example, by cached latents)."""
        self._datasets = {name: replace(name, dataset) for name, dataset in self.datasets.items()}

    def setup(self, stage: str | None = None) -> None:
        """Build the data sets once for all stages."""
        _ = self.datasets

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the loader of the train set: index lists of `train_batch_sampler`, or shuffled batches."""
        if self.train_batch_sampler is None:
            return self._loader("train", shuffle=not isinstance(self._dataset("train"), IterableDataset))
        dataset = self._dataset("train")
        return DataLoader(
            dataset,
            batch_sampler=self.train_batch_sampler,
            collate_fn=EmptyAwareCollate(dataset[0]),
            **self._worker_options(),
        )

    def val_dataloader(self) -> DataLoader[dict[str, Any]] | list[DataLoader[dict[str, Any]]]:
        """Return the loader of the validation set; an empty list without one, so that fitting skips validation."""
        if "validation" not in self.dataset_configs:
            return []
        return self._loader("validation", shuffle=self.shuffle_val_dataloader)

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the loader of the test set."""
        return self._loader("test", shuffle=self.shuffle_test_loader)

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the loader of the predict set."""
        return self._loader("predict", shuffle=False)

    def _dataset(self, name: str) -> Dataset[dict[str, Any]]:
        if name not in self.datasets:
            raise UserError(f"data.params has no {name!r} set; add {name}: {{target: ..., params: ...}}")
        dataset = self.datasets[name]
        whole = callable(getattr(dataset, "batch", None))
        return InBatches(cast(BatchedRecords, dataset)) if whole else dataset

    def _loader(self, name: str, shuffle: bool) -> DataLoader[dict[str, Any]]:
        dataset = self._dataset(name)
        options = self._worker_options()
        return DataLoader(dataset, batch_size=self.batch_size, shuffle=shuffle, collate_fn=collate, **options)

    def _worker_options(self) -> dict[str, Any]:
        seed = seed_worker if self.use_worker_init_fn and self.num_workers > 0 else None
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "worker_init_fn": seed,
            "pin_memory": torch.cuda.is_available(),  # copies to a GPU then run beside its computations
        }

    def _warn_of_overlap(self) -> None:
        """Warn when evaluation records are also training records (by source file and row)."""
        train = self.datasets.get("train")
        for name in ("validation", "test"):
            other = self.datasets.get(name)
            if not isinstance(train, SourcedRecords) or not isinstance(other, SourcedRecords):
                continue
            if not train.source or train.source != other.source:
                continue
            shared = len(np.intersect1d(train.rows, other.rows))
            if shared:
                log.warning(
                    "%d of %d %s records are also training records; give both sets the same holdout",
                    shared,
                    len(other),
                    name,
                )
