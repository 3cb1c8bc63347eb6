"""Data against model, before either does any work."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ldm.config import get_obj_from_str, load_config, to_plain
from ldm.data.mnist import MNISTTrain
from ldm.errors import UserError
from ldm.training.data_check import FRAMED, ImageNeeds, check_data, image_needs, warn_of_framing
from ldm.training.model_check import check_parts
from tests import tiny


class Images:
    """Items of given shapes."""

    def __init__(self, *shapes: tuple[int, ...], labels: Any = None, fields: tuple[str, ...] = ("class_label",)):
        self.shapes, self.fields = shapes, fields
        if labels is not None:
            self.labels = np.asarray(labels)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": np.zeros(self.shapes[index], np.float32), **dict.fromkeys(self.fields, 0)}


def data(train: Any, batch_size: int = 1) -> Any:
    return SimpleNamespace(datasets={"train": train}, batch_size=batch_size)


PARAMS = tiny.ldm("spatial")["params"]
GOOD = (8, 8, 1)


def test_needs_of_the_models() -> None:
    assert image_needs(PARAMS) == ImageNeeds("image", 1, 2, 8)
    assert image_needs(tiny.AUTOENCODER["params"]) == ImageNeeds("image", 1, 2, None)
    pixels = {"unet_config": {}, "image_size": 16, "channels": 3}
    assert image_needs(pixels) == ImageNeeds("image", 3, 1, 16)
    assert image_needs({**pixels, "first_stage_config": {"target": "mine.Encoder"}}) is None


@pytest.mark.parametrize(
    ("train", "line"),
    [
        (Images((8, 8, 3)), "record 0: the image has 3 channels, the model takes 1; set channels: 1"),
        (Images((16, 16, 1)), "is 16x16 pixels, the model trains on 8x8; set size: 8"),
        (Images((8, 10, 1)), "is 10x8 pixels, the model trains on 8x8"),
        (Images(GOOD, (8, 16, 1)), "record 1: the image is 16x8 pixels, the first 8x8; set size: PIXELS"),
        (Images(GOOD, fields=("caption",)), "it has image, caption and no class_label, which the model is conditioned"),
        (Images(GOOD, labels=[10]), "label 10 is outside the model's 10 classes"),
        (Images(GOOD, labels=[-1]), "label -1 is outside the model's 10 classes"),
    ],
)
def test_what_does_not_fit(train: Any, line: str) -> None:
    check_data(PARAMS, data(Images(GOOD, labels=[9])))
    with pytest.raises(UserError, match=line):
        check_data(PARAMS, data(train))


def test_an_autoencoder_halves_its_images() -> None:
    params = tiny.AUTOENCODER["params"]
    check_data(params, data(Images((12, 6, 1), fields=())))
    with pytest.raises(
        UserError, match="is 9x8 pixels, and the autoencoder needs a multiple of 2 each way; set size: 8"
    ):
        check_data(params, data(Images((8, 9, 1))))


def test_the_null_class_is_no_class_of_data() -> None:
    stage = {**PARAMS["cond_stage_config"]["params"], "ucg_rate": 0.1}
    params = {**PARAMS, "cond_stage_config": {**PARAMS["cond_stage_config"], "params": stage}}
    check_data(params, data(Images(GOOD, labels=[8])))
    check_data(PARAMS, data(Images(GOOD, labels=[9])))
    for train in (Images(GOOD, labels=[9]), SimpleNamespace(data=Images(GOOD, labels=[9]), datasets={})):
        with pytest.raises(
            UserError, match="class_label 9 is the model's null class .*n_classes=11, or leave that class"
        ):
            check_data(params, data(train))


def test_a_batch_is_no_larger_than_the_data() -> None:
    check_data(PARAMS, data(Images(GOOD, GOOD), 2))
    with pytest.raises(UserError, match="batch_size: 3 exceeds the 2 training records; type data.params.batch_size=2"):
        check_data(PARAMS, data(Images(GOOD, GOOD), 3))


@pytest.mark.parametrize(
    ("place", "value", "line"),
    [
        ("channels", 3, "first stage makes latents of 2 channels .embed_dim.; set model.params.channels=2"),
        ("unet_config.params.in_channels", 4, "in_channels: 4, and the network works on 2 channels"),
        ("unet_config.params.out_channels", 1, "out_channels: 1, and the network works on 2 channels"),
        ("image_size", 5, "image_size: 5, and the network halves latents 1 times; give a multiple of 2"),
        ("unet_config.params.context_dim", 7, "context_dim: 7, and the class embedding has 5 values"),
    ],
)
def test_parts_of_a_model_that_do_not_fit(place: str, value: int, line: str) -> None:
    params = tiny.ldm()["params"]
    check_parts(params)
    check_parts(tiny.ldm("attention")["params"])
    concatenated = tiny.ldm(conditioning_key=None)["params"]
    concatenated["unet_config"]["params"]["in_channels"] = 7
    check_parts(concatenated)  # the network takes the condition beside the latent
    section = params
    *outer, last = place.split(".")
    for key in outer:
        section = section[key]
    section[last] = value
    with pytest.raises(UserError, match=line):
        check_parts(params)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale_factor", 0.0),
        ("scale_factor", float("nan")),
        ("scale_factor", -1.0),
        ("linear_start", -1.0),
        ("linear_end", 3.0),
        ("given_betas", [0.1, 1.0]),
    ],
)
def test_numbers_that_no_diffusion_works_with(name: str, value: Any) -> None:
    with pytest.raises(UserError, match="scale_factor is|linear_start is|the noise schedule has betas"):
        tiny.build(tiny.ldm(**{name: value}))


def test_images_framed_unlike_those_of_the_shipped_model_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    digits = tiny.write_digits(tmp_path / "digits")
    sets = {
        framing: MNISTTrain(root=str(digits), size=12, channels=1, framing=framing) for framing in ("resize", "pad")
    }
    start = {"ckpt_path": "checkpoints/digits32-ldm.safetensors"}
    with caplog.at_level(logging.WARNING, "ldm"):
        warn_of_framing(start, sets["pad"])
        warn_of_framing(start, MNISTTrain(root=str(digits), size=tiny.SIDE, channels=1))  # nothing is resized
        warn_of_framing({"ckpt_path": "mine.ckpt"}, sets["resize"])
        warn_of_framing({}, sets["resize"])
        warn_of_framing(start, Images(GOOD))
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "ldm"):
        warn_of_framing(start, sets["resize"])
    assert "8x8 pixels are brought to 12 by framing: resize" in caplog.text
    assert "digits32-ldm.safetensors was trained with framing: pad" in caplog.text


def test_files_that_start_from_a_shipped_model_frame_their_images_as_it_was_trained() -> None:
    root, seen = Path(__file__).parents[2], set()
    for path in sorted((root / "configs").rglob("*.yaml")):
        config = load_config([path])
        start = config.get("model", {}).get("params", {}).get("ckpt_path", None) if "model" in config else None
        stem = Path(str(start)).stem
        if stem not in FRAMED or "data" not in config:
            continue
        node = to_plain(config.data.params.train)
        seen.add(stem)
        framing = node.get("params", {}).get("framing", get_obj_from_str(node["target"]).default_framing)
        assert framing == FRAMED[stem], path
    assert seen == set(FRAMED)
