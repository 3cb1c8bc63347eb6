"""Checks that data and model fit each other, from the configuration and a few records, before training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ldm.config import instantiate_from_config
from ldm.data.module import DataModuleFromConfig
from ldm.errors import UserError

logger = logging.getLogger(__name__)

#: How the images of shipped public models reached their size, by file name without suffix.
FRAMED = {"glyphs32-ldm": "pad", "digits32-ldm": "pad", "clothes32-ldm": "pad"}

#: Number of records per set whose shapes are checked, spread over the set; errors in others show during training.
LOOKED_AT = 32


@dataclass(frozen=True)
class ImageNeeds:
    """A model's requirements on images: channels, sides divisible by ``multiple``, and a fixed size if ``side``."""

    key: str
    channels: int | None
    multiple: int
    side: int | None


def image_needs(params: Mapping[str, Any]) -> ImageNeeds | None:
    """The image requirements of the model with these ``model.params``; None when they cannot be derived.

    An autoencoder halves the image once for each level after the first, and latent diffusion trains on latents of
    ``image_size``. Diffusion without a first stage sees the pixels.
    """
    if isinstance(params.get("ddconfig"), Mapping):
        channels, multiple = _autoencoder(params["ddconfig"])
        return ImageNeeds(str(params.get("image_key", "image")), channels, multiple, None)
    if "unet_config" not in params:
        return None
    key = str(params.get("first_stage_key", "image"))
    side = params.get("image_size")
    first = params.get("first_stage_config")
    inside = (first.get("params") or {}).get("ddconfig") if isinstance(first, Mapping) else None
    if isinstance(inside, Mapping):
        channels, multiple = _autoencoder(inside)
        return ImageNeeds(key, channels, multiple, side * multiple if isinstance(side, int) else None)
    if isinstance(first, Mapping) and not str(first.get("target", "")).endswith("IdentityFirstStage"):
        return None
    return ImageNeeds(key, params.get("channels"), 1, side if isinstance(side, int) else None)


def _autoencoder(ddconfig: Mapping[str, Any]) -> tuple[int | None, int]:
    return ddconfig.get("in_channels"), 2 ** max(0, len(ddconfig.get("ch_mult") or ()) - 1)


def check_data(params: Mapping[str, Any], data: DataModuleFromConfig) -> None:
    """Compare the data sets with the model of these ``model.params``; raises UserError with the setting to change."""
    needs = image_needs(params)
    for name, dataset in data.datasets.items():
        first: tuple[int, ...] | None = None
        for where, item in _some_items(name, dataset):
            if needs is not None and needs.key in item:
                shape = tuple(np.shape(item[needs.key]))
                first = first or shape
                check_same_size(first, shape, where)
            if needs is not None and needs.key in item:
                check_image(needs, tuple(np.shape(item[needs.key])), where)
            check_condition(params, item, where)
    check_labels(_condition_stage(params), data)
    check_batch(data)
    warn_of_framing(params, data.datasets.get("train"))


def warn_of_framing(params: Mapping[str, Any], train: Any) -> None:
    """Warn when training images reach their size in another way than those of the shipped model they start from.

    A digit that is padded from 28 to 32 pixels is smaller than one that is resized: the shapes agree, and the public
    model knows only one of them.
    """
    start = params.get("ckpt_path")
    wanted = FRAMED.get(Path(start).stem) if isinstance(start, str) else None
    framing = getattr(train, "framing", None)
    if wanted is None or framing in (None, wanted) or not hasattr(train, "pixels") or not len(train):
        return
    stored = tuple(train.pixels(0).shape[:2])
    if stored != (train.size, train.size):
        logger.warning(
            "data.params.train: images of %dx%d pixels are brought to %s by framing: %s, and %s was trained with "
            "framing: %s; set it in the data set's params",
            *(stored[1], stored[0], train.size, framing, start, wanted),
        )


def _some_items(name: str, dataset: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Records spread over a set, each with its position in words; no record for a set without a length."""
    count = len(dataset) if hasattr(dataset, "__len__") else 0
    for index in np.unique(np.linspace(0, count - 1, min(count, LOOKED_AT), dtype=int)) if count else ():
        item = dataset[int(index)]
        if isinstance(item, Mapping):
            yield f"data.params.{name}, record {index}", item


def check_same_size(first: tuple[int, ...], shape: tuple[int, ...], where: str) -> None:
    """Raise UserError for images of one set whose different shapes prevent batching."""
    if shape != first:
        raise UserError(
            f"{where}: the image is {shape[1]}x{shape[0]} pixels, the first {first[1]}x{first[0]}; set size: PIXELS "
            "in the data set's params, to which all are brought"
        )


def check_image(needs: ImageNeeds, shape: tuple[int, ...], where: str) -> None:
    """Raise UserError for an image (H, W, C) or (H, W) that the model cannot take."""
    height, width = shape[:2]
    channels = shape[2] if len(shape) > 2 else 1
    if needs.channels is not None and channels != needs.channels:
        raise UserError(
            f"{where}: the image has {channels} channels, the model takes {needs.channels}; set channels: "
            f"{needs.channels} in the data set's params, or the model's in_channels"
        )
    if needs.side is not None and (height, width) != (needs.side, needs.side):
        raise UserError(
            f"{where}: the image is {width}x{height} pixels, the model trains on {needs.side}x{needs.side}; set size: "
            f"{needs.side} in the data set's params, or the model's image_size"
        )
    if height % needs.multiple or width % needs.multiple:
        nearest = max(1, round(min(height, width) / needs.multiple)) * needs.multiple
        raise UserError(
            f"{where}: the image is {width}x{height} pixels, and the autoencoder needs a multiple of {needs.multiple} "
            f"each way; set size: {nearest} in the data set's params"
        )


def check_condition(params: Mapping[str, Any], item: Mapping[str, Any], where: str) -> None:
    """Raise UserError for a record without the model's condition."""
    key = params.get("cond_stage_key")
    conditional = isinstance(params.get("cond_stage_config"), Mapping)
    if conditional and isinstance(key, str) and key not in item:
        raise UserError(
            f"{where}: it has {', '.join(map(str, item))} and no {key}, which the model is conditioned on; choose data "
            "with it, or set cond_stage_config: __is_unconditional__"
        )


def _condition_stage(params: Mapping[str, Any]) -> Any:
    """A placeholder model with only the class embedding, which is small; other condition stages are not built here."""
    config = params.get("cond_stage_config")
    key = params.get("cond_stage_key")
    if (
        not isinstance(config, Mapping)
        or not str(config.get("target", "")).endswith(".ClassEmbedder")
        or key != "class_label"
    ):
        return SimpleNamespace(cond_stage_model=None, cond_stage_key=key)
    with torch.random.fork_rng(devices=[]):  # keeps the initial values of the model independent of this check
        return SimpleNamespace(cond_stage_model=instantiate_from_config(config), cond_stage_key=key)


def check_labels(model: Any, data: DataModuleFromConfig) -> None:
    """Raise UserError for a label without a class in the condition stage, for data sets that expose their labels.

    The null class of guidance is no class of data, because records with that label would train the unconditional model.
    This check gives a one-line message; a GPU would fail in mid-epoch with an anonymous assertion.
    """
    stage: Any = getattr(model, "cond_stage_model", None)
    if not hasattr(stage, "check") or getattr(model, "cond_stage_key", None) != "class_label":
        return
    for name, dataset in data.datasets.items():
        labels = getattr(dataset, "labels", None)
        if labels is None:
            labels = getattr(getattr(dataset, "data", None), "labels", None)  # labels of a wrapped data set
        if labels is None:
            continue
        labels = torch.as_tensor(labels)
        try:
            stage.check(labels)
        except UserError as error:
            raise UserError(f"data.params.{name}: {error}") from None
        if getattr(stage, "ucg_rate", 0.0) > 0 and bool((labels == stage.null_class).any()):
            raise UserError(
                f"data.params.{name}: class_label {stage.null_class} is the model's null class (ucg_rate is "
                f"{stage.ucg_rate:g}, n_classes {stage.n_classes}), so these records would train the unconditional "
                f"model; set cond_stage_config.params.n_classes={stage.n_classes + 1}, or leave that class out"
            )


def check_batch(data: DataModuleFromConfig) -> None:
    """Raise UserError for a batch that is larger than the training set."""
    train: Any = data.datasets.get("train")
    if hasattr(train, "__len__") and data.batch_size > len(train):
        raise UserError(
            f"data.params.batch_size: {data.batch_size} exceeds the {len(train)} training records; type "
            f"data.params.batch_size={len(train)} or less"
        )
