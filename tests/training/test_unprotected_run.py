"""Training without privacy: it is said, the card says it, and weights trained so on the private data are named."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from ldm.checkpoint import read_checkpoint, unprotected_data
from ldm.errors import UserError
from ldm.privacy.card import ReleaseCard
from ldm.training import private_run, train
from ldm.training.run_directory import RunDirectory
from ldm.training.unprotected_run import record_unprotected
from tests import tiny


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the running epsilon of the progress bar, which costs more than the training."""
    monkeypatch.setattr(private_run, "EpsilonMeter", lambda plan: lambda steps: 0.0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("unprotected")
    tiny.write_digits(folder / "digits")
    tiny.write_digits(folder / "others", seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def public(place: Path) -> RunDirectory:
    """A run without privacy on the digits."""
    config = tiny.run_config(tiny.ldm("attention"), place / "digits", max_steps=1)
    return train(tiny.options(place / "public", config))


def card_of(run: RunDirectory) -> dict[str, Any]:
    return json.loads(run.privacy_card.read_text())


def test_the_card_says_that_there_is_no_privacy(public: RunDirectory) -> None:
    card = card_of(public)
    assert card["private"] is False and card["statement"].startswith("NOT private")
    with pytest.raises(UserError, match="privacy.json: the run was trained without differential privacy"):
        ReleaseCard.read(public.privacy_card)


def test_one_line_warns(place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny.run_config(tiny.ldm("attention"), place / "digits", max_steps=1)
    with caplog.at_level(logging.WARNING):
        train(tiny.options(tmp_path, config, train=False, no_test=True))
        assert "NOT private" not in caplog.text, "nothing is trained"
        train(tiny.options(tmp_path, config))
    assert caplog.text.count("this run is NOT private") == 1


def test_the_checkpoint_carries_what_it_has_seen(public: RunDirectory) -> None:
    (seen,) = unprotected_data(read_checkpoint(public.checkpoints / "last.ckpt"))
    assert seen == card_of(public)["trained_on"][0] and seen.startswith("MNISTTrain ")


@pytest.mark.parametrize(("digits", "named"), [("digits", True), ("others", False)])
def test_a_private_run_on_the_same_records_names_its_start(
    digits: str, named: bool, place: Path, public: RunDirectory
) -> None:
    start = str(public.checkpoints / "last.ckpt")
    section = tiny.ldm("attention", train_attention_only=True, ckpt_path=start, dp_config=tiny.dp())
    config = tiny.run_config(section, place / digits, max_steps=1)
    config["data"]["params"]["train"]["params"]["channels"] = 1
    run = train(tiny.options(place / f"private_{digits}", config))
    card = card_of(run)
    assert card["private"] is not named
    assert ("trained without privacy on the same records" in card["statement"]) == named
    assert unprotected_data(read_checkpoint(run.checkpoints / "last.ckpt")), "the next run has to know, too"


def test_an_autoencoder_trained_on_the_private_records_counts(place: Path) -> None:
    model = tiny.build(tiny.ldm("attention"))
    model.first_stage_model.unprotected_data = ("MNISTTrain 0123",)
    checkpoint: dict[str, Any] = {}
    model.on_save_checkpoint(checkpoint)
    assert checkpoint["unprotected_data"] == ["MNISTTrain 0123"]


def test_the_card_of_a_private_run_is_never_overwritten(tmp_path: Path) -> None:
    class Data:
        datasets: dict[str, Any] = {}  # noqa: RUF012

    run = RunDirectory(tmp_path, "now")
    run.privacy_card.write_text(json.dumps({"private": True, "plan": {}}))
    with pytest.raises(UserError, match="is the account of a private run"):
        record_unprotected(Data(), Data(), run)
    assert json.loads(run.privacy_card.read_text())["private"] is True
