"""`ldm.util`, and the addresses in `callbacks` and `main`: what Python of the lineage imports."""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from ldm import util
from ldm.errors import UserError
from tests import tiny


def test_a_whole_model_section_is_built() -> None:
    section = OmegaConf.create({"base_learning_rate": 1e-5, **tiny.AUTOENCODER})
    assert type(util.instantiate_from_config(section)).__name__ == "AutoencoderKL"
    assert util.instantiate_from_config("__is_unconditional__") is None
    assert util.instantiate_from_config("__is_first_stage__") is None
    with pytest.raises(UserError, match="unknown key 'base_learning_rat'"):
        util.instantiate_from_config({"base_learning_rat": 1, **tiny.AUTOENCODER})
    assert util.get_obj_from_str("torch.nn.Identity", reload=False) is nn.Identity


def test_small_helpers() -> None:
    assert util.exists(0) and not util.exists(None)
    assert util.default(0, 3) == 0 and util.default(None, 3) == 3 and util.default(None, lambda: 4) == 4
    assert util.default(None, dict) is dict, "a class is a value"
    image, maps = torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4)
    assert util.isimage(image) and not util.isimage(maps) and not util.isimage("x")
    assert util.ismap(maps) and not util.ismap(image)
    assert util.mean_flat(torch.arange(8.0).reshape(2, 2, 2)).tolist() == [1.5, 5.5]


def test_parameters_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert util.count_params(nn.Linear(3, 2)) == 8 and capsys.readouterr().out == ""
    util.count_params(nn.Linear(3, 2), verbose=True)
    assert capsys.readouterr().out == "Linear has 0.00 M params.\n"


def test_captions_are_drawn() -> None:
    drawn = util.log_txt_as_img((128, 64), ["a smiling person " * 5, ""], size=10)
    assert drawn.shape == (2, 3, 64, 128) and drawn.min() >= -1 and drawn.max() <= 1
    assert (drawn[0] < 0).any() and (drawn[1] == 1).all()
    assert (drawn[0][:, 12:] < 0).any(), "long captions are broken into lines"
    assert util.log_txt_as_img((8, 8), []).shape == (0, 3, 8, 8)


def test_addresses_of_callbacks_and_main() -> None:
    from callbacks.cuda import CUDACallback
    from callbacks.differential_privacy import DPCallback
    from callbacks.setup import SetupCallback
    from ldm.config import get_obj_from_str
    from ldm.data.base import Txt2ImgIterableBaseDataset
    from ldm.modules.losses.contperceptual import DummyLoss
    from main import WrappedDataset, get_parser

    assert get_obj_from_str("main.CUDACallback") is CUDACallback
    assert get_obj_from_str("main.SetupCallback") is SetupCallback
    assert get_obj_from_str("main.WrappedDataset") is WrappedDataset
    assert isinstance(get_parser(), argparse.ArgumentParser)
    assert isinstance(DummyLoss(), nn.Identity) and DPCallback()
    stream = Txt2ImgIterableBaseDataset(num_records=3, valid_ids=[1, 2], size=8)
    assert len(stream) == 3 and stream.sample_ids == [1, 2]
    with pytest.raises(NotImplementedError):
        iter(stream)


def test_test_tube_is_tensorboard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from pytorch_lightning.loggers import TensorBoardLogger

    target = "pytorch_lightning.loggers.TestTubeLogger"
    params = {"name": "testtube", "save_dir": str(tmp_path), "debug": False, "create_git_tag": False}
    assert isinstance(util.instantiate_from_config({"target": target, "params": params}), TensorBoardLogger)
    assert "debug (it was an option of test-tube)" in caplog.text


def test_the_rank_schedule_of_a_callback_is_compared() -> None:
    from callbacks.rank_scheduler import RankSchedulerCallback

    schedule = {"name": "layer-wise", "initial_rank": 4, "final_rank": 1, "schedule_type": "linear"}
    lora = {"use_model_lora": True, "model_lora_target": ["qkv"]}
    callback = RankSchedulerCallback(schedule)
    built = tiny.build(tiny.ldm("attention", **lora, model_lora_rank_schedule=schedule))
    callback.on_fit_start(None, built)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="model_lora_rank_schedule: {name: layer-wise, initial_rank: 4"):
        callback.on_fit_start(None, tiny.build(tiny.ldm("attention", **lora)))  # type: ignore[arg-type]


class FakeTokenizer:
    @classmethod
    def from_pretrained(cls, version: str) -> FakeTokenizer:
        if version != "here":
            raise OSError("not cached\nmore")
        return cls()

    def __call__(self, texts: list[str], **options: Any) -> dict[str, torch.Tensor]:
        rows = [[len(word) for word in text.split()][: options["max_length"]] for text in texts]
        return {"input_ids": torch.tensor([row + [0] * (options["max_length"] - len(row)) for row in rows])}


class FakeText(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 3)

    @classmethod
    def from_pretrained(cls, version: str) -> FakeText:
        return cls()

    def forward(self, input_ids: torch.Tensor) -> Any:
        return types.SimpleNamespace(last_hidden_state=self.table(input_ids))


def test_clip_text_without_and_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from ldm.modules.encoders.modules import FrozenCLIPEmbedder

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="needs the package transformers"):
        FrozenCLIPEmbedder()
    library = types.ModuleType("transformers")
    vars(library).update(CLIPTokenizer=FakeTokenizer, CLIPTextModel=FakeText)
    monkeypatch.setitem(sys.modules, "transformers", library)
    with pytest.raises(UserError, match=r"the weights of openai/.* are not here \(not cached\)"):
        FrozenCLIPEmbedder()
    stage = FrozenCLIPEmbedder("here", max_length=4)
    assert not any(parameter.requires_grad for parameter in stage.parameters())
    assert stage.tokenize(["a bc"]).tolist() == [[1, 2, 0, 0]]
    assert torch.equal(stage.encode(["a bc"]), stage(stage.tokenize(["a bc"]))) and stage("a").shape == (1, 4, 3)
