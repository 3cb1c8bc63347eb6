"""What every data set has in common: one signature, items that collate, both spellings of the size."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ldm.config import accepted_parameters, get_obj_from_str
from ldm.data.latent_cache import why_not_cacheable
from ldm.data.module import EmptyAwareCollate
from ldm.evaluation.inputs.sources import dataset_batches, open_dataset, parse_settings
from tests.data.faces import write_celeba, write_celebahq
from tests.data.files import write_camelyon, write_cifar10, write_cifar100, write_digits, write_idx, write_svhn


def write_letters(root):
    for part in ("train", "test"):
        write_idx(root / f"emnist-letters-{part}-images-idx3-ubyte", np.zeros((26, 28, 28), np.uint8))
        write_idx(root / f"emnist-letters-{part}-labels-idx1-ubyte", np.arange(1, 27))


def write_faces(root):
    write_celebahq(root, 6, [5, 0, 3, 1], [4, 2])


SETS = {
    "ldm.data.mnist.MNISTTrain": write_digits,
    "ldm.data.fashion_mnist.FashionMNISTTrain": write_digits,
    "ldm.data.kmnist.KMNISTTrain": write_digits,
    "ldm.data.emnist.EMNISTTrain": write_letters,
    "ldm.data.emnist.EMNISTBase": write_letters,
    "ldm.data.cifar10.CIFAR10Train": write_cifar10,
    "ldm.data.cifar100.CIFAR100Train": write_cifar100,
    "ldm.data.svhn.SVHNTrain": write_svhn,
    "ldm.data.celeba.CelebATrain": write_celeba,
    "ldm.data.celeba.CelebAValidation": write_celeba,
    "ldm.data.celebahq.CelebAHQ": write_faces,
    "ldm.data.camelyon.CamelyonTrain": write_camelyon,
    "ldm.data.camelyon.CamelyonVal": write_camelyon,
}


@pytest.mark.parametrize("target", SETS)
def test_the_verbs_open_every_set_by_either_spelling(tmp_path, target):
    SETS[target](tmp_path)
    settings = parse_settings([f"root:{tmp_path}", "size:16"])
    data = open_dataset(target, settings)
    older = open_dataset(target, parse_settings([f"root:{tmp_path}", "config.size:16"]))
    images, labels = next(dataset_batches(data, batch_size=2, progress=False))
    assert images.shape == (2, 3, 16, 16) and (labels is None or labels.dtype == torch.int64)
    assert older.fingerprint() == data.fingerprint()
    assert np.array_equal(older[1]["image"], data[1]["image"])
    assert open_dataset(target, {**settings, "size": 12}).fingerprint() != data.fingerprint()


@pytest.mark.parametrize("target", SETS)
def test_items_suit_the_loader_the_private_run_and_the_cache(tmp_path, target):
    SETS[target](tmp_path)
    data = open_dataset(target, {"root": str(tmp_path), "size": 16})
    assert why_not_cacheable(data) is None and len(data.rows) == len(data) and data.source
    batch = next(iter(DataLoader(data, batch_size=2)))
    assert batch["image"].dtype == torch.float32 and batch["image"].shape == (2, 16, 16, 3)
    assert float(batch["image"].min()) >= -1 and float(batch["image"].max()) <= 1
    if data.labels is None:
        assert "class_label" not in batch
    else:
        assert (
            batch["class_label"].dtype == torch.int64 and 0 <= data.labels.min() <= data.labels.max() < data.num_classes
        )
    empty = EmptyAwareCollate(data[0])([])
    assert {name: value.shape[1:] for name, value in empty.items()} == {n: v.shape[1:] for n, v in batch.items()}
    again = pickle.loads(pickle.dumps(data))  # as a worker process receives it
    assert np.array_equal(again[1]["image"], data[1]["image"]) and again.fingerprint() == data.fingerprint()


@pytest.mark.parametrize("target", SETS)
def test_every_set_has_the_same_options(target):
    names, _, is_open = accepted_parameters(get_obj_from_str(target))
    common = {"size", "flip_p", "root", "split", "channels", "framing", "interpolation", "config"}
    assert common <= names
    assert not is_open, "a misspelt option must not be swallowed"
