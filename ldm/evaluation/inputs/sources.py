"""Images to evaluate from sample files, and from dataset classes named on the command line."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from ldm.config import accepted_parameters, allow_target, get_obj_from_str, instantiate_from_config
from ldm.errors import UserError
from ldm.samples import IMAGE_KEY, LABEL_KEY, SampleSet
from ldm.samples.shards import WHOLE, Shard

logger = logging.getLogger(__name__)

SAMPLE_SUFFIXES = (".pt", ".pth", ".npz")
IMAGE_FOLDER = "ldm.data.folder.ImageFolder"  # by name, because data sets are a layer beside this one
_WORDS: dict[str, Any] = {"true": True, "false": False, "none": None, "null": None}


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` or `key:value` words as a nested dict: dots nest, numbers and true/false/none are converted.

    ["size:32", "config.root:a:b"] -> {"size": 32, "config": {"root": "a:b"}}. Raises UserError naming the bad word.
    """
    result: dict[str, Any] = {}
    for setting in settings:
        equals, colon = setting.find("="), setting.find(":")
        key, separator, text = setting.partition("=" if equals > 0 and (colon < 0 or equals < colon) else ":")
        *parents, last = key.split(".")
        if not separator or not all([*parents, last]):
            raise UserError(f"--args {setting!r} is not of the form key=value, for example size=32")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise UserError(f"--args {setting!r}: {parent!r} already has a value")
        if last in place:
            raise UserError(f"--args {setting!r}: {key!r} is given twice")
        place[last] = _scalar(text)
    return result


def _scalar(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if re.match(r"[-+]?0\d|.*_", text):  # 007 and 1_0 are names; Python would read numbers
        return text
    for convert in (int, float):
        try:
            value = convert(text)
        except ValueError:
            continue
        # 007 and 1_000 are names: as numbers they would lose their spelling, and a folder of that name with it
        return text if convert is int and str(value) != text.removeprefix("+") else value
    return text


def open_dataset(target: str, settings: Mapping[str, Any] | None = None) -> Any:
    """Build the dataset class `target` (dotted name) with constructor arguments `settings`.

    A class that takes only `config` gets a plain `size` as `config.size`, and the other way round, because both
    spellings are in use. Raises UserError for a name that is not there or arguments the class does not take.
    """
    module = _module_of(target)
    allow_target(module)  # the user named it on the command line; the list of allowed names guards config files
    params = _respell_size(get_obj_from_str(target), dict(settings or {}))
    dataset = instantiate_from_config({"target": target, "params": params})
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise UserError(f"{target} is not a dataset (no length and items)")
    return dataset


def _module_of(target: str) -> str:
    """The module in a dotted class name. Raises UserError for a word that is no such name, as a mistyped folder is."""
    module = target.rpartition(".")[0]
    if not module or not all(word.isidentifier() for word in target.split(".")):
        raise UserError(
            f"there is no file or folder {target!r} here, and it is not a dotted class name such as "
            "ldm.data.mnist.MNISTTrain"
        )
    return module


def _respell_size(factory: Any, params: dict[str, Any]) -> dict[str, Any]:
    accepted, _, is_open = accepted_parameters(factory)
    if is_open:
        return params
    config = params.get("config")
    if "config" in params and "config" not in accepted and "size" in accepted and isinstance(config, dict):
        return {**{key: value for key, value in params.items() if key != "config"}, **config}
    if "size" in params and "size" not in accepted and "config" in accepted:
        rest = {key: value for key, value in params.items() if key != "size"}
        return {**rest, "config": {"size": params["size"], **(config or {})}}
    return params


def dataset_batches(
    dataset: Any, *, batch_size: int = 500, num_workers: int = 0, progress: bool = True, shard: Shard = WHOLE
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """One ordered pass through a dataset of `{image: (H, W, C) in [-1, 1], class_label: int}` items.

    Yields images (B, C, H, W) float32 and labels (B,) int64, or None where items have none; with a ``shard`` only the
    batches of that part. Raises UserError when
    items are of another form or scale.
    """
    if batch_size < 1 or num_workers < 0:
        raise UserError(f"batch size {batch_size} must be at least 1 and workers {num_workers} at least 0")
    if not len(dataset):
        raise UserError("the dataset is empty")
    part = shard.part(-(-len(dataset) // batch_size))
    rows = range(part.start * batch_size, min(part.stop * batch_size, len(dataset)))
    chosen = dataset if len(rows) == len(dataset) else Subset(dataset, rows)
    loader = DataLoader(chosen, batch_size=batch_size, num_workers=num_workers, collate_fn=_stack)
    shape, darkest = None, float("inf")
    for images, labels in tqdm(loader, unit="batch", disable=None if progress else True):
        shape = images.shape[1:] if shape is None else shape
        if images.shape[1:] != shape:
            sizes = sorted([tuple(shape[1:]), tuple(images.shape[2:])])
            raise UserError(f"images have different shapes ({sizes} ...); pass a size, such as size:32")
        darkest = min(darkest, float(images.min()))
        yield images, labels
    if darkest >= 0:
        logger.warning("%s: no pixel is below 0; items are read as [-1, 1], not [0, 1]", type(dataset).__name__)


def from_training_files(dataset: Any) -> bool:
    """Whether a data set's records come from its training files, even if its name says otherwise."""
    return str(getattr(dataset, "source", "")).endswith(" train")


def _stack(items: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    if not isinstance(items[0], Mapping) or IMAGE_KEY not in items[0]:
        raise UserError(f"dataset items have no {IMAGE_KEY!r}; expected dicts with {IMAGE_KEY!r} and {LABEL_KEY!r}")
    shapes = {np.shape(item[IMAGE_KEY]) for item in items}
    if len(shapes) > 1:
        raise UserError(f"images have different shapes ({sorted(shapes)[:2]} ...); pass a size, such as size:32")
    images = torch.stack([torch.as_tensor(np.asarray(item[IMAGE_KEY]), dtype=torch.float32) for item in items])
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise UserError(f"images have shape {tuple(images.shape[1:])}; expected (height, width, 1 or 3)")
    if float(images.abs().max()) > 1.001:
        raise UserError(f"pixels lie in [{float(images.min()):.3g}, {float(images.max()):.3g}]; expected [-1, 1]")
    labels = torch.tensor([int(item[LABEL_KEY]) for item in items]) if LABEL_KEY in items[0] else None
    return images.permute(0, 3, 1, 2), labels


def sample_batches(samples: SampleSet, batch_size: int = 500, *, progress: bool = True) -> Iterator[Tensor]:
    """The images of a sample set in batches (B, C, H, W)."""
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} must be at least 1")
    yield from tqdm(samples.images.split(batch_size), unit="batch", disable=None if progress else True)


def collect(dataset: Any, *, num_workers: int = 0, progress: bool = True) -> SampleSet:
    """A whole dataset as a sample set in memory; its meta holds class names, and `from_training_files`."""
    images, labels = [], []
    for batch, batch_labels in dataset_batches(dataset, num_workers=num_workers, progress=progress):
        images.append(batch)
        if batch_labels is not None:
            labels.append(batch_labels)
    meta: dict[str, Any] = {"from_training_files": True} if from_training_files(dataset) else {}
    if names := list(getattr(dataset, "class_names", None) or ()):
        meta["class_names"] = names
    return SampleSet(torch.cat(images), torch.cat(labels) if labels else None, meta)


def load_labelled(
    name: str, settings: Sequence[str] = (), *, size: int | None = None, for_scores: bool = True
) -> SampleSet:
    """Labelled images of a sample file (.pt, .npz), of a folder with a subfolder for each class, or of a dataset class.

    settings: of the class that the dotted `name` names, or size:N of a folder.
    size: passed to a dataset class that takes a size when `settings` give none. for_scores: the images will be used
    for scores, so images of training files cause a warning, and meta gets `from_training_files`.
    Raises UserError as `open_dataset` and `dataset_batches` do.
    """
    params = parse_settings(settings)
    if Path(name).is_dir():
        name, params = IMAGE_FOLDER, {"root": name, **params}
    elif Path(name).suffix in SAMPLE_SUFFIXES or os.sep in name or Path(name).exists():
        if settings:
            raise UserError(f"{name} is a file; key:value settings only go with a dataset class")
        return SampleSet.load(name, need_labels=True)
    if size is not None and "size" not in params and "config" not in params and takes_size(name):
        params["size"] = size
    samples = collect(open_dataset(name, params))
    if samples.labels is None:
        raise UserError(f"{params.get('root', name)} has no labels")
    if for_scores and samples.meta.get("from_training_files"):
        logger.warning(
            "%s: these %d images come from the training files; on a model trained with them this is no test score "
            "(split:test gives the test files)",
            " ".join([name, *settings]),
            len(samples),
        )
    return samples


def takes_size(target: str) -> bool:
    """Whether the dataset class `target` has a constructor argument `size` or `config`. Raises UserError."""
    allow_target(_module_of(target))
    names, _, _ = accepted_parameters(get_obj_from_str(target))
    return bool({"size", "config"} & names)
