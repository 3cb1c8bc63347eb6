"""Class labels as cross-attention tokens."""

from __future__ import annotations

import pytest
import torch

from ldm.errors import UserError
from ldm.modules.encoders.modules import ClassEmbedder
from tests import parity


def test_numbers():
    entry = parity.entry("class_embedder")
    model = parity.build(entry)
    labels = parity.io(entry)[0]["labels"]
    parity.check("c", model({"class_label": labels}), entry)
    parity.check("c_key", model({"other": labels}, key="other"), entry)


def test_token_axis():
    got = ClassEmbedder(embed_dim=5, n_classes=4)({"class": torch.tensor([0, 3])})
    assert got.shape == (2, 1, 5)
    assert ClassEmbedder(embed_dim=5)({"class": torch.empty(0, dtype=torch.int64)}).shape == (0, 1, 5)


def test_forward_is_deterministic_in_training():
    model = ClassEmbedder(embed_dim=5, n_classes=4, ucg_rate=0.9).train()
    labels = torch.arange(3).repeat(50)
    assert torch.equal(model({"class": labels}), model({"class": labels}))


def test_drop_replaces_the_asked_share():
    model = ClassEmbedder(embed_dim=5, n_classes=11, ucg_rate=0.3)
    labels = torch.arange(10).repeat(1000)
    kept = labels.clone()
    got = model.drop(labels, torch.Generator().manual_seed(0))
    assert torch.equal(labels, kept)
    dropped = got == 10
    assert torch.equal(got[~dropped], labels[~dropped])
    assert dropped.float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(got, model.drop(labels, torch.Generator().manual_seed(0)))


def test_drop_does_nothing_at_rate_zero():
    labels = torch.arange(5)
    model = ClassEmbedder(embed_dim=2, n_classes=5)
    state = torch.get_rng_state()
    assert model.drop(labels) is labels
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("label", [-1, 4])
def test_label_outside_the_classes(label):
    model = ClassEmbedder(embed_dim=5, n_classes=4, key="class_label")
    labels = torch.tensor([0, label])
    with pytest.raises(UserError, match=f"class_label: label {label} is outside the model's 4 classes"):
        model.check(labels)
    with pytest.raises(UserError, match="n_classes"):
        model({"class_label": labels})
    model.check(torch.tensor([0, 3]))
    model.check(torch.empty(0, dtype=torch.int64))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"ucg_rate": 1.0}, "ucg_rate: 1.0 must be at least 0 and below 1"),
        ({"ucg_rate": -0.1}, "ucg_rate: -0.1 must be at least 0 and below 1"),
        ({"n_classes": 1, "ucg_rate": 0.1}, "n_classes: 1 is too small; count the null class"),
    ],
)
def test_bad_parameters(params, message):
    with pytest.raises(UserError, match=message):
        ClassEmbedder(embed_dim=2, **params)
