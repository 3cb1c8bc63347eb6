"""What data sets draw in a private run, in the training process itself, is nobody's to compute."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from ldm.data.base import ArrayDataset
from ldm.models.diffusion.private_training import PrivateTraining
from ldm.privacy.ledger import Ledger
from ldm.privacy.plan import PrivacyPlan
from tests import tiny


@pytest.fixture(autouse=True)
def generators() -> Iterator[None]:
    ours, theirs = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        yield
    np.random.set_state(ours)
    random.setstate(theirs)


def mirrored(insecure_seed: int | None) -> list[bool]:
    """Which of 64 images are mirrored when a run that was started with the public seed 23 first reads them."""
    torch.manual_seed(23)
    model = tiny.build(tiny.ldm("attention", train_attention_only=True, dp_config={"enabled": True}))
    constants = {"sample_rate": 0.25, "steps": 4, "noise_multiplier": 1.0, "max_grad_norm": 0.1, "delta": 1e-3}
    plan = PrivacyPlan(**constants, expected_batch_size=4, insecure_seed=insecure_seed)
    PrivateTraining(model, model.select_trainable(), plan, Ledger()).begin()
    image = np.zeros((64, 2, 2), dtype=np.uint8)
    image[:, :, 0] = 255
    data = ArrayDataset(image, np.zeros(64), flip_p=0.5, channels=1)
    return [bool(data[index]["image"][0, 1, 0] > 0) for index in range(64)]


def test_mirrorings_do_not_follow_from_anything_public() -> None:
    first, second = mirrored(None), mirrored(None)
    assert 0 < sum(first) < 64 and first != second
    assert mirrored(3) == mirrored(3) != mirrored(4)
