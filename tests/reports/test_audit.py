"""`dp-ldm audit` on a tiny private run: below the claim as it is, above it with each planted mistake; on the card."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.broken_mechanisms import BROKEN
from ldm.commands.table import dispatch
from ldm.errors import UserError
from ldm.privacy.audit import Mechanism, Signals, audit_draws
from ldm.privacy.card import ReleaseCard
from ldm.privacy.plan import PrivacyPlan
from ldm.reports import audit as reports_audit
from ldm.reports.audit import AuditRequest, Subject, made_up_records, run_audit
from ldm.reports.audit_file import AUDIT, AuditFile
from ldm.reports.release import release_run
from ldm.reports.release_facts import ReleaseFacts
from ldm.reports.verification import verify_release
from ldm.training import train
from tests import tiny
from tests.tiny_runs import small_checkpoint, small_ldm

STEPS = 8


def config(folder: Path) -> dict[str, Any]:
    section = small_ldm(
        ckpt_path=str(small_checkpoint(folder / "public.ckpt", small_ldm())),
        dp_config=tiny.dp(dataset_size=30, noise_multiplicity=2, noise_multiplier=2.0),
    )
    return tiny.run_config(section, tiny.write_digits(folder / "digits"), 6, max_steps=STEPS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return train(tiny.options(folder, config(folder))).path


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may write into."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def audited(place: Path, *words: str) -> int:
    """The exit code of the command with these words."""
    try:
        dispatch(["audit", str(place), "--records", "3", "--canaries", "800", "--device", "cpu", *words])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_a_run_is_audited_on_its_own_model_and_the_result_goes_on_the_card(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a private image was read")

    monkeypatch.setattr("ldm.data.mnist.MNISTTrain.__init__", refuse)
    assert audited(own) == 0 and audited(own, "--sensitivity") == 0
    said = capsys.readouterr().out
    assert said.count("consistent") == 3 and "no private image is read" in said
    kept = json.loads((own / AUDIT).read_text())
    assert kept["bound"]["steps"] == STEPS and kept["plan"]["steps"] == STEPS
    card = ReleaseCard.read(own / "privacy.json")
    assert kept["bound"]["claimed_epsilon"] == pytest.approx(next(iter(card.epsilons().values())))
    # secret noise: 194 audits of such a run found 0.34 to 0.95 of the claim (standard deviation 0.1)
    assert 0.2 < kept["bound"]["lower_bound"] / kept["bound"]["claimed_epsilon"] < 1
    assert 0.99 < kept["sensitivity"]["largest"] <= 1 + kept["sensitivity"]["tolerance"]
    release_run(own, tmp_path / "out", ReleaseFacts(date="2026-01-01"))
    page, text = (tmp_path / "out" / "card.html").read_text(), (tmp_path / "out" / "CARD.md").read_text()
    assert "Leak that was measured" in page and "Leak that was measured" in text and "none was made" not in page
    verdict = verify_release(tmp_path / "out")
    assert verdict.sound and any("epsilon is at least" in line for line in verdict.lines())
    values = json.loads((tmp_path / "out" / "privacy.json").read_text())
    values["audit"]["bound"]["claimed_epsilon"] = values["audit"]["bound"]["lower_bound"] = 0.5
    (tmp_path / "out" / "privacy.json").write_text(json.dumps(values))
    problems = [line for line in verify_release(tmp_path / "out").lines() if line.startswith("WRONG  audit")]
    assert len(problems) == 1 and "its audit compares with epsilon 0.5" in problems[0]


@pytest.mark.parametrize(
    "name",
    [
        "noise of half the deviation",
        "noise draws clipped as records",
        "each drawn record named twice",
        "shuffled epochs instead of Poisson draws",
    ],
)
def test_a_planted_mistake_ends_with_code_1_and_no_release(
    own: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports_audit, "training_mechanism", lambda engine: BROKEN[name])
    assert audited(own) == 1
    said = capsys.readouterr().out
    assert "EXCEEDED" in said and "do not publish" in said
    assert json.loads((own / AUDIT).read_text())
    with pytest.raises(UserError, match="its audit failed: .*EXCEEDED"):
        release_run(own, tmp_path / "out", ReleaseFacts())


def test_copies_clipped_as_records_move_the_sum_too_far(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = BROKEN["noise draws clipped as records"]
    monkeypatch.setattr(reports_audit, "training_mechanism", lambda engine: broken)
    assert audited(own, "--sensitivity") == 1


def test_shuffling_leaks_more_than_is_claimed_among_records_that_pull_the_other_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = config(tmp_path)
    values["model"]["params"]["dp_config"].update(sample_rate=0.02, noise_multiplier=1.0, insecure_seed=7)
    values["lightning"]["trainer"]["max_steps"] = 150
    path = Path(tiny.options(tmp_path, values).base[0])
    monkeypatch.setattr(
        reports_audit, "training_mechanism", lambda engine: BROKEN["shuffled epochs instead of Poisson draws"]
    )
    assert audited(path, "--method", "pairs") == 1
    assert "shuffled" not in capsys.readouterr().err


def test_a_configuration_is_audited_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny.options(tmp_path, config(tmp_path)).base[0]
    assert audited(Path(path), "lightning.trainer.max_steps=5") == 0
    said = capsys.readouterr().out
    assert "audited     5 steps" in said and f"next: dp-ldm train {path}" in said
    assert not list(tmp_path.rglob(AUDIT))


def test_the_parts_that_are_audited_are_those_that_training_uses(run: Path) -> None:
    subject = Subject.find(run, (), torch.device("cpu"))
    card = ReleaseCard.read(run / "privacy.json")
    trained = {name for name, value in subject.model.named_parameters() if value.requires_grad}
    assert trained == set(card.trained)
    rows, loss = made_up_records(subject.model, 2)
    assert loss(rows).shape == (2,) and not torch.equal(loss(rows), loss(rows)), "noise is drawn for each row"


def test_an_audit_of_other_steps_is_no_audit_of_this_run(own: Path) -> None:
    plan = replace(ReleaseCard.read(own / "privacy.json").plan, steps=STEPS - 1)
    AuditFile.make(plan, {"draws": {"exceeded": False}}).write(own / AUDIT)
    with pytest.raises(UserError, match="was made for another plan, or for 7 steps where the run has 8"):
        release_run(own, own.parent / "out", ReleaseFacts())


def test_parts_of_another_plan_are_not_kept(own: Path) -> None:
    plan = ReleaseCard.read(own / "privacy.json").plan
    before = AuditFile.make(replace(plan, steps=3), {"draws": {"exceeded": False}})
    assert set(AuditFile.make(plan, {"sensitivity": {"x": float("inf")}}, before).parts) == {"sensitivity"}
    same = AuditFile.make(plan, {"draws": {"exceeded": False}})
    assert set(AuditFile.make(plan, {"sensitivity": {}}, same).parts) == {"draws", "sensitivity"}


def test_what_cannot_be_audited_is_refused(own: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dp_config.enabled is not set"):
        audited(Path(tiny.options(tmp_path / "x", config(tmp_path)).base[0]), "model.params.dp_config.enabled=false")
    (own / "privacy.json").unlink()
    with pytest.raises(UserError, match="no privacy card here"):
        audited(own)


def signals(drawn: np.ndarray, rate: float) -> Signals:
    steps, canaries = drawn.shape
    plan = PrivacyPlan(rate, steps, 1.0, 1.0, 1e-5, 8)
    return Signals(np.zeros(drawn.shape, np.float32), drawn.astype(np.int8), np.ones(canaries, bool), plan, 1.0)


def test_independent_draws_pass_and_dependent_ones_do_not() -> None:
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(300):
        found = audit_draws(signals(random.random((20, 400)) < 0.1, 0.1))
        assert found is not None and not found.exceeded
        wrong += found.chance < 0.05
    assert wrong <= 30, "the stated chance is that of a correct sampler"
    fixed = np.zeros((20, 400), bool)
    for step in range(20):  # batches of one size, independent of each other
        fixed[step, random.permutation(400)[:40]] = True
    found = audit_draws(signals(fixed, 0.1))
    assert found is not None and found.exceeded and found.by_step == 0 and "not independent" in found.verdict()
    twice = audit_draws(signals((random.random((20, 400)) < 0.1) * 2, 0.1))
    assert twice is not None and "2 times in one step" in twice.verdict()
    assert audit_draws(signals(np.ones((3, 9), bool), 1.0)) is None


def test_a_model_whose_condition_cannot_be_made_up_is_audited_on_canaries(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subject = Subject.find(run, (), torch.device("cpu"))
    subject.model.cond_stage_key = "coordinates_bbox"
    found = run_audit(subject, AuditRequest(canaries=300))
    assert "canaries go through the mechanism alone" in caplog.text and not found.exceeded
    with pytest.raises(UserError, match="none with this model's condition"):
        run_audit(subject, AuditRequest(sensitivity=True))
    assert isinstance(reports_audit.training_mechanism("naive"), Mechanism)


def test_an_audit_leaves_a_release_as_it_is(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "release"
    release_run(run, out, ReleaseFacts())
    subject = Subject.find(out, (), torch.device("cpu"))
    assert subject.run is None and subject.stated_epsilon is not None
    assert reports_audit.save_audit(subject, run_audit(subject, AuditRequest(canaries=50))) is None
    assert verify_release(out).sound


@pytest.mark.parametrize(
    "wrong", [{"canaries": 1}, {"records": 0}, {"records": -1}, {"confidence": 0.0}, {"confidence": float("nan")}]
)
def test_numbers_out_of_range_are_refused_before_anything_is_audited(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong))} is .*, it must be a"):
        AuditRequest(**wrong)
