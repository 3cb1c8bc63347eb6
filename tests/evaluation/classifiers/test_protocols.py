"""Published protocols are what their sources say, and say how they choose."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ldm.errors import UserError
from ldm.evaluation.classifiers.protocols import (
    BEST_TEST,
    HELD_OUT,
    LAST,
    PROTOCOLS,
    REAL_HELD_OUT,
    ClassifierProtocol,
    protocol_named,
)


def test_the_default_never_looks_at_real_test_images() -> None:
    default = ClassifierProtocol()
    assert default.name == HELD_OUT and default.selection == HELD_OUT and not default.uses_test_for_selection
    assert protocol_named(HELD_OUT) == default


def test_selection_of_the_published_ones() -> None:
    chosen = {name: protocol.selection for name, protocol in PROTOCOLS.items()}
    assert chosen == {
        "held-out": HELD_OUT,
        "one-cycle": HELD_OUT,
        "one-cycle-affine": HELD_OUT,
        "dpdm": HELD_OUT,
        "dp-ldm": HELD_OUT,
        "wrn40-4": LAST,
        "best-test-epoch": BEST_TEST,
        "dp-lora": BEST_TEST,
        "dpimagebench": HELD_OUT,
        "dpimagebench-published": REAL_HELD_OUT,
    }
    for name, protocol in PROTOCOLS.items():
        assert protocol.uses_test_for_selection == (name in ("best-test-epoch", "dp-lora"))
        assert ("real test images" in protocol.note) == protocol.uses_test_for_selection
        assert protocol.source


def test_numbers_of_the_published_ones() -> None:
    dpdm, wrn, sgdr = PROTOCOLS["dpdm"], PROTOCOLS["wrn40-4"], PROTOCOLS["best-test-epoch"]
    assert (dpdm.optimizer, dpdm.lr, dpdm.epochs, dpdm.batch_size, dpdm.size) == ("adam", 3e-4, 50, 128, 28)
    assert (wrn.optimizer, wrn.lr, wrn.epochs, wrn.batch_size, wrn.weight_decay) == ("sgd", 0.1, 10, 1000, 5e-4)
    assert wrn.nesterov and wrn.label_smoothing == 0.1 and wrn.wrn_dropout == 0.3
    assert (sgdr.lr, sgdr.epochs, sgdr.anneal_period, sgdr.anneal_mult, sgdr.augmult) == (0.1, 200, 10, 2, 2)
    assert sgdr.augment == ("flip", "crop") and sgdr.subtract_mean and sgdr.ema_decay == 0.9999


def test_one_cycle_goes_with_no_other_schedule() -> None:
    assert PROTOCOLS["one-cycle"].one_cycle and PROTOCOLS["one-cycle"].augment == ("noise",)
    assert PROTOCOLS["one-cycle-affine"].one_cycle and PROTOCOLS["one-cycle-affine"].augment == ("affine", "noise")
    with pytest.raises(UserError, match="one_cycle sets the rate"):
        ClassifierProtocol(one_cycle=True, anneal_period=3)
    with pytest.raises(UserError, match="adam, adamw or sgd"):
        ClassifierProtocol(optimizer="adamax")


def test_dpimagebench_has_two_rules_and_one_training() -> None:
    honest, published = PROTOCOLS["dpimagebench"], PROTOCOLS["dpimagebench-published"]
    assert (honest.optimizer, honest.lr, honest.batch_size, honest.epochs) == ("adam", 0.01, 256, 50)
    assert (honest.decay_period, honest.decay_factor, honest.ema_decay) == (20, 0.2, 0.9999)
    assert honest.report_average and honest.wrn_dropout == 0.3 and not honest.grey
    same = {"name": honest.name, "source": honest.source, "selection": honest.selection}
    assert replace(published, **same) == honest
    assert "no epsilon covers the choice" in published.note


def test_a_changed_protocol_says_so() -> None:
    dpdm = PROTOCOLS["dpdm"]
    assert dpdm.changed() is dpdm and dpdm.changed(epochs=None, lr=3e-4) is dpdm
    changed = dpdm.changed(epochs=2)
    assert (changed.name, changed.epochs, changed.lr) == ("dpdm, changed", 2, dpdm.lr)
    assert changed.changed(lr=1.0).name == "dpdm, changed"
    content = json.loads(json.dumps(changed.to_dict()))
    assert content["honest"] is True and content["note"] == "epoch chosen on held-out samples"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 0}, "0 epochs"),
        ({"batch_size": 0}, "batch size"),
        ({"lr": 0.0}, "learning rate"),
        ({"selection": "best-test-epochs"}, "did you mean 'best-test-epoch'"),
        ({"optimizer": "rmsprop"}, "adamw or sgd"),
        ({"augment": ("flips",)}, "did you mean 'flip'"),
        ({"ema_decay": 1.0}, "EMA decay"),
        ({"report_average": True}, "ema_decay is 0"),
        ({"decay_period": -1}, "decay period -1"),
        ({"decay_period": 5, "anneal_period": 5}, "anneal_period 0 beside it"),
        ({"epoch": 3}, "did you mean 'epochs'"),
    ],
)
def test_mistakes_are_named(changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        ClassifierProtocol().changed(**changes)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="did you mean 'dpdm'.*dpimagebench"):
        protocol_named("dpmd")
