"""`dp-ldm sweep` on tiny models: free on public images, every private run charged, the best of a random number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant

from ldm.checkpoint import checkpoint_metadata, read_checkpoint
from ldm.commands.table import dispatch
from ldm.errors import UserError
from ldm.privacy.card import ReleaseCard
from ldm.privacy.selection import Selection
from ldm.reports.release import release_run
from ldm.reports.release_facts import ReleaseFacts
from ldm.reports.sweep import parse_grid
from ldm.reports.sweep.result import ranked
from ldm.reports.verification import verify_release

RATES = "model.base_learning_rate=0.001,0.01"


def public(place: Path, flag: str) -> list[str]:
    return [
        f"--{flag}",
        "ldm.data.mnist.MNISTTrain",
        f"--{flag}_args",
        f"root:{place / 'public'}",
        "size:8",
        "channels:1",
    ]


def swept(*words: object) -> dict[str, Any]:
    dispatch(["sweep", "run.yaml", *map(str, words), "--out", "out", "--device", "cpu"])
    return json.loads(Path("out/sweep.json").read_text())


def test_public_images_play_the_private_ones(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "private" / "train-images-idx3-ubyte").unlink()  # reading a private image would fail
    found = swept("--try", RATES, *public(place, "public"))
    said = capsys.readouterr().out
    assert found["mode"] == "public" and len(found["tried"]) == 2
    assert found["best"] == int(np.argmin([entry["score"] for entry in found["tried"]]))
    assert found["tried"][found["best"]]["behind"] == 0 and "none on the private ones" in found["statement"]
    assert f"next: dp-ldm train run.yaml {found['tried'][found['best']]['setting'][0]}" in said
    cards = [ReleaseCard.read(place / "out" / entry["run"] / "privacy.json") for entry in found["tried"]]
    assert [card.plan.num_records for card in cards] == [30, 30] and not any(card.others for card in cards)


def test_private_runs_are_charged_together_from_their_first_checkpoint(place: Path) -> None:
    found = swept("--try", RATES, "--charge", "composition")
    assert found["best"] is None and "charges all of these runs" in found["statement"]
    runs = [place / "out" / entry["run"] for entry in found["tried"]]
    for run in runs:
        card = ReleaseCard.read(run / "privacy.json")
        assert card.private and len(card.others) == 1 and card.others[0].ledger.steps == 2
        accountant = PLDAccountant()
        step = PoissonSampledDpEvent(card.plan.sample_rate, GaussianDpEvent(card.plan.noise_multiplier))
        accountant.compose(SelfComposedDpEvent(step, 4))  # two runs of two steps
        exact = accountant.get_epsilon(card.plan.delta)
        assert card.epsilons()["pld"] == pytest.approx(exact, rel=0.01) and 3.9 < exact <= 4.01
        assert checkpoint_metadata(read_checkpoint(run / "checkpoints" / "last.ckpt"), "start_privacy")
    release_run(runs[1], place / "release", ReleaseFacts(date="2026-01-01"))
    assert verify_release(place / "release").sound
    assert "1 other private run included" in (place / "release" / "CARD.md").read_text()
    values = json.loads((place / "release" / "privacy.json").read_text())
    del values["others"]
    (place / "release" / "privacy.json").write_text(json.dumps(values))
    assert not verify_release(place / "release").sound


def test_the_best_of_a_random_number_of_runs_keeps_the_number_secret(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Selection, "draw", lambda self, generator: 3)
    found = swept("--try", RATES, "--charge", "selection", "--expected-runs", "5", *public(place, "held-out"))
    assert sorted(path.name for path in (place / "out").iterdir()) == [
        "base.yaml",
        "best",
        "request.json",
        "sweep.json",
    ]
    assert len(found["tried"]) == 1 and found["settings"] == 2
    said = capsys.readouterr().out
    assert (
        "run 1" not in said
        and "3" not in said.partition("written to")[0].replace("2110.03620", "").split("score")[-1][:0]
    )
    card = ReleaseCard.read(place / "out" / "best" / "privacy.json")
    assert card.plan.selection == Selection.with_mean(5) and card.private
    assert 3.9 < card.epsilons()["rdp"] <= 4 and "secret, random number of runs" in card.statement()
    release_run(place / "out" / "best", place / "release", ReleaseFacts(date="2026-01-01"))
    verdict = verify_release(place / "release")
    assert verdict.sound, verdict.lines()
    assert "negative binomial" in (place / "release" / "card.html").read_text()


def test_a_selection_among_different_mechanisms_is_refused(place: Path) -> None:
    with pytest.raises(UserError, match="changes the sampling rate, the steps or the noise"):
        swept("--try", "data.params.batch_size=6,12", "--charge", "selection", *public(place, "held-out"))
    assert not (place / "out" / "runs").exists()


def test_a_setting_that_no_run_takes_is_refused_before_another_one_is_charged(place: Path) -> None:
    with pytest.raises(UserError, match="model.base_learning_rate is 'nan', no positive number"):
        swept("--try", "model.base_learning_rate=1e-3,nan", "--charge", "composition")
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say which images to try on"),
        (["--public", "x.Y", "--charge", "composition"], "say which images to try on"),
        (["--charge", "selection"], "needs public images to choose by"),
    ],
)
def test_a_sweep_says_who_pays(place: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        swept("--try", RATES, *words)
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--try", "model.base_learning_rat=1,2"], "model has no key 'base_learning_rat'; did you mean 'base_l"),
        (["--try", RATES, "lightning.trainer.max_step=9"], "no key 'max_step'; did you mean 'max_steps'"),
        (["--try", RATES, "model.params.dp_config.delt=1"], "no key 'delt'; did you mean 'delta'"),
        (["--try", RATES, "model.params.dp_config.enabled=false"], "would have no guarantee to account for"),
    ],
)
def test_a_misspelt_key_is_named_before_anything_is_written(place: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        swept(*words, "--charge", "composition")
    assert not (place / "out").exists()


def test_a_grid() -> None:
    assert parse_grid(["a.b=1,2", "c=x"]) == (("a.b=1", "c=x"), ("a.b=2", "c=x"))
    for word, message in (
        ("a.b", "type key.path=value,value"),
        ("a=1,,2", "type key.path=value,value"),
        ("model.params.dp_config.epsilon=1,2", "keeps the privacy promise"),
    ):
        with pytest.raises(UserError, match=message):
            parse_grid([word])
    with pytest.raises(UserError, match="given twice"):
        parse_grid(["a=1", "a=2"])
    with pytest.raises(UserError, match="nothing to try"):
        parse_grid([])


def test_ties_are_told_by_the_difference_over_the_same_images() -> None:
    random = np.random.default_rng(0)
    base = random.normal(size=200)
    losses = {0: base, 1: base + np.tile([0.01, -0.0099], 100), 2: base + 0.5}
    tried, best = ranked([("a=1",), ("a=2",), ("a=3",)], ["x", "y", "z"], losses)
    assert best == 0 and [entry.level for entry in tried] == [True, True, False]
    assert tried[2].deviation == pytest.approx(base.std(ddof=1) / 200**0.5)
