from __future__ import annotations

import os

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import IterableDataset

from ldm.data.base import ArrayDataset
from ldm.data.module import DataModuleFromConfig, WrappedDataset, default_workers
from ldm.errors import UserError

BUILT: list[str] = []


class Tiny(ArrayDataset):
    """Twelve 4x4 images that count how often they are built."""

    def __init__(self, count: int = 12, name: str = "tiny", source: str = "", first: int = 0):
        BUILT.append(name)
        images = np.arange(count, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
        rows = np.arange(first, first + count)
        super().__init__(images, np.arange(count) % 3, channels=1, source=source, rows=rows)


class Stream(IterableDataset):
    """Three items without a length."""

    def __iter__(self):
        return iter([{"image": np.zeros((2, 2, 1), np.float32), "class_label": i} for i in range(3)])


def node(kind: str = "Tiny", **params) -> dict:
    return {"target": f"{__name__}.{kind}", "params": params}


@pytest.fixture(autouse=True)
def targets():
    from ldm import config

    before = set(config.ALLOWED_PREFIXES)
    config.allow_target(__name__)
    BUILT.clear()
    yield
    config.ALLOWED_PREFIXES.clear()
    config.ALLOWED_PREFIXES.update(before)


def module(**options) -> DataModuleFromConfig:
    return DataModuleFromConfig(**{"batch_size": 5, "num_workers": 0, "train": node(), **options})


def test_batches_have_the_promised_types():
    batch = next(iter(module().train_dataloader()))
    assert batch["image"].shape == (5, 4, 4, 1) and batch["image"].dtype == torch.float32
    assert batch["class_label"].dtype == torch.int64


def test_training_is_shuffled_and_evaluation_is_not():
    data = module(validation=node(), test=node(), predict=node(), batch_size=12)
    torch.manual_seed(0)
    order = [
        next(iter(loader()))["image"][:, 0, 0, 0].tolist()
        for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader, data.predict_dataloader)
    ]
    assert order[0] != sorted(order[0]) and order[1] == order[2] == order[3] == sorted(order[0])
    shuffled = module(validation=node(), shuffle_val_dataloader=True, batch_size=12)
    values = next(iter(shuffled.val_dataloader()))["image"][:, 0, 0, 0].tolist()
    assert values != sorted(values)


def test_data_sets_are_built_once():
    data = module(validation=node(name="other"))
    assert BUILT == []
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    data.train_dataloader()
    assert BUILT == ["tiny", "other"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_sampler_takes_the_place_of_shuffling(workers):
    data = module(num_workers=workers)
    data.train_batch_sampler = [[3, 1], [], [0, 1, 2]]
    batches = list(data.train_dataloader())
    assert [len(batch["image"]) for batch in batches] == [2, 0, 3]
    assert batches[0]["class_label"].tolist() == [0, 1]
    empty = batches[1]
    assert empty["image"].shape == (0, 4, 4, 1) and empty["image"].dtype == torch.float32
    assert empty["class_label"].shape == (0,) and empty["class_label"].dtype == torch.int64


def test_data_sets_can_be_replaced():
    data = module(validation=node(count=4))
    data.replace_datasets(lambda name, old: torch.utils.data.Subset(old, [0, 1]) if name == "train" else old)
    assert len(data.datasets["train"]) == 2 and len(data.datasets["validation"]) == 4
    assert len(next(iter(data.train_dataloader()))["image"]) == 2


def test_wrapping_keeps_what_the_latent_cache_asks():
    data = module(wrap=True)
    wrapped = data.datasets["train"]
    assert isinstance(wrapped, WrappedDataset) and not hasattr(wrapped, "labels")
    assert wrapped.deterministic and wrapped.fingerprint() == Tiny().fingerprint() and len(wrapped) == 12


def test_workers_are_few(monkeypatch):
    assert default_workers() <= (os.cpu_count() or 1)
    for cpus, workers in ((1, 0), (2, 1), (64, 2), (None, 0)):
        monkeypatch.setattr(os, "cpu_count", lambda cpus=cpus: cpus)
        assert DataModuleFromConfig(5000).num_workers == workers
    assert DataModuleFromConfig(5, num_workers=3).num_workers == 3


def test_mistakes_are_user_errors():
    with pytest.raises(UserError, match="no records"):
        module(train=node(count=0)).setup()
    with pytest.raises(UserError, match="no 'test' set"):
        module().test_dataloader()
    for name, value in (("batch_size", 0), ("num_workers", -1)):
        with pytest.raises(UserError, match=f"data: {name}={value}; give {value + 1} or more"):
            module(**{name: value})
    with pytest.raises(TypeError):
        module(batchsize=3)


def test_shared_records_are_pointed_out(caplog):
    module(train=node(source="file"), validation=node(source="file", first=8)).setup()
    assert "4 of 12 validation records are also training records" in caplog.text
    caplog.clear()
    module(train=node(source="file"), validation=node(source="file", first=12)).setup()
    module(train=node(source="file"), validation=node(source="another file")).setup()
    assert caplog.text == ""


def test_a_stream_is_served_in_its_own_order():
    batch = next(iter(module(train=node("Stream")).train_dataloader()))
    assert batch["class_label"].tolist() == [0, 1, 2]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("validation", [None, node(count=3)])
def test_lightning_runs_with_and_without_validation(validation):
    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.seen = []

        def training_step(self, batch, index):
            self.seen.append(len(batch["image"]))
            return self.weight * batch["image"].sum()

        def validation_step(self, batch, index):
            self.seen.append(-len(batch["image"]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    data = module(validation=validation)
    data.train_batch_sampler = [[0, 1], [], [2]]
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    model = Model()
    pl.Trainer(max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, **quiet).fit(model, data)
    assert model.seen == [2, 0, 1] + ([-3] if validation else [])
