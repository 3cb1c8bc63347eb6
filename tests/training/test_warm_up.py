"""Private runs that release statistics before their first step: what is charged, and what happens when they stop."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from torch import Tensor

from ldm.checkpoint import checkpoint_metadata, read_checkpoint
from ldm.commands.table import dispatch
from ldm.data.latent_cache import LatentCache
from ldm.data.mnist import MNISTTrain
from ldm.errors import UserError
from ldm.files import file_digest
from ldm.models.diffusion.latent_draws import LatentDraws
from ldm.models.diffusion.private_training import PrivateTraining
from ldm.privacy.card import ReleaseCard
from ldm.privacy.event import SamplingEvent
from ldm.privacy.ledger import Ledger
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.statistics import ClassMoments, Frame, Release, release
from ldm.reports.release import release_run
from ldm.reports.release_facts import ReleaseFacts
from ldm.reports.verification import verify_release
from ldm.samples import SampleSet
from ldm.training import private_run, train
from ldm.training import warm_up as warm_up_module
from ldm.training.public_frame import save_frame
from ldm.training.run_directory import RunDirectory
from ldm.training.statistics_file import load_releases
from ldm.training.statistics_plan import StatisticsPlan
from tests import tiny

DELTA = 1e-3
WARM_UP = tiny.WARM_UP
MEANS = {"noise_multiplier": 20, "weights": [1, 1, 0]}
EVENTS = (SamplingEvent(1.0, 8.0), SamplingEvent(1.0, 9.0))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("statistics")
    tiny.write_digits(folder / "digits")
    tiny.public_checkpoint(folder / "public.ckpt")
    public = torch.randn(200, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    save_frame(Frame.fit(public, 5), folder / "frame.safetensors", "random numbers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the running epsilon of the progress bar."""
    monkeypatch.setattr(private_run, "EpsilonMeter", lambda plan, history=(), others=(): lambda steps: 0.0)


def config_of(place: Path, warm_up: Mapping[str, Any] | None = None, **dp: Any) -> dict[str, Any]:
    asked = {**copy.deepcopy(WARM_UP), "frame": str(place / "frame.safetensors"), **(warm_up or {})}
    given = tiny.dp(**{"noise_multiplier": None, "epsilon": 2, "warm_up": asked, **dp})
    model = tiny.ldm(ckpt_path=str(place / "public.ckpt"), train_condition_only=True, dp_config=given)
    return tiny.run_config(model, place / "digits", max_epochs=1)


def start(place: Path, name: str, **dp: Any) -> RunDirectory:
    return train(tiny.options(place / name, config_of(place, **dp)))


def resume(path: Path, *dotlist: str) -> RunDirectory:
    return train(tiny.RunOptions(base=[], resume=str(path), train=True, scale_lr=False, dotlist=list(dotlist)))


def run_folder(place: Path, name: str) -> Path:
    (folder,) = (place / name / "logs").iterdir()
    return folder


@pytest.fixture(scope="module")
def finished(place: Path) -> RunDirectory:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private_run, "EpsilonMeter", lambda plan, history=(), others=(): lambda steps: 0.0)
        return start(place, "finished")


# ---------------------------------------------------------------------- what is charged and said


def test_statistics_and_steps_together_meet_the_target_by_another_accountant(finished: RunDirectory) -> None:
    card = ReleaseCard.read(finished.privacy_card)
    assert card.plan.steps == card.ledger.count(card.plan.event()) == 4
    assert [card.ledger.count(event) for event in EVENTS] == [1, 1] and card.ledger.steps == 6
    accountant = PLDAccountant()
    for event in EVENTS:
        accountant.compose(GaussianDpEvent(event.noise_multiplier))
    step = PoissonSampledDpEvent(card.plan.sample_rate, GaussianDpEvent(card.plan.noise_multiplier))
    accountant.compose(SelfComposedDpEvent(step, 4))
    assert 0.98 * 2 < accountant.get_epsilon(DELTA) <= 2 * 1.001
    assert next(iter(card.epsilons().values())) == pytest.approx(accountant.get_epsilon(DELTA), rel=0.01)
    alone = PLDAccountant()
    alone.compose(SelfComposedDpEvent(step, 4))
    assert alone.get_epsilon(DELTA) < 0.99 * accountant.get_epsilon(DELTA), "room was left for the statistics"


def test_the_card_names_every_statistic_with_its_constants(finished: RunDirectory) -> None:
    statistics = json.loads(finished.privacy_card.read_text())["statistics"]
    assert [entry["noise_multiplier"] for entry in statistics] == [8, 9]
    assert [entry["constants"]["cells"] for entry in statistics] == [1, 2]
    assert statistics[0]["constants"]["clip_norm"] == 4.0
    assert statistics[0]["numbers"] == 10 * (1 + 5 + 15)


def test_every_file_carries_the_account(finished: RunDirectory) -> None:
    for path, steps in ((finished.statistics, 2), (finished.warmed_up, 2), (finished.checkpoints / "last.ckpt", 6)):
        account = read_checkpoint(path)["privacy"]
        assert account["ledger"]["steps"] == steps, path.name
        assert account["plan"] == ReleaseCard.read(finished.privacy_card).plan.to_dict()


def test_the_noisy_sums_on_disk_are_not_the_exact_ones(finished: RunDirectory) -> None:
    _, releases = load_releases(finished.statistics)
    counts = releases[0].sums["count"]
    assert counts.shape == (10, 1) and not torch.equal(counts, counts.round())


def test_latents_are_taken_as_they_are(tmp_path: Path) -> None:
    """No centre, no scale of their own: what a record contributes may depend on no other record."""
    digits = MNISTTrain(root=str(tiny.write_digits(tmp_path / "digits")), size=tiny.SIDE, channels=1)
    cache = LatentCache(digits, lambda images: images.repeat(1, 4, 1, 1), "key", root=tmp_path / "cache")
    latents, labels = warm_up_module.latents_of(SimpleNamespace(scale_factor=0.5, channels=2), cache)
    images = torch.stack([torch.as_tensor(digits[place]["image"]).permute(2, 0, 1) for place in range(len(digits))])
    torch.testing.assert_close(latents, 0.5 * images.repeat(1, 2, 1, 1))
    assert labels.tolist() == [digits[place]["class_label"] for place in range(len(digits))]


def test_training_starts_from_the_warmed_up_model_and_moves_on(finished: RunDirectory, place: Path) -> None:
    public = tiny.build(tiny.ldm(ckpt_path=str(place / "public.ckpt"))).state_dict()
    warm = read_checkpoint(finished.warmed_up)["state_dict"]
    last = read_checkpoint(finished.checkpoints / "last.ckpt")["state_dict"]
    frozen = "model.diffusion_model.input_blocks.0.0.weight"  # not trained privately, but by the warm-up
    assert not torch.equal(public[frozen], warm[frozen]) and torch.equal(warm[frozen], last[frozen])
    assert not torch.equal(warm["cond_stage_model.embedding.weight"], last["cond_stage_model.embedding.weight"])
    shadow = frozen.removeprefix("model.").replace(".", "")
    assert torch.equal(last[f"model_ema.{shadow}"], warm[frozen])


def test_without_steps_the_statistics_are_released_and_the_model_is_left_alone(place: Path) -> None:
    run = start(place, "unused", warm_up={"training": {"steps": 0}}, epsilon=None, noise_multiplier=3.0)
    assert run.statistics.is_file() and not run.warmed_up.exists()


# ---------------------------------------------------------------------- stop and go on


class Stop(Exception):
    """What a lost machine looks like."""


def fail(*_: Any, **__: Any) -> None:
    raise Stop


STOPS = {
    "before the statistics": ("warm_up.release", 0),
    "after the first round": ("second release", 1),
    "before the card": ("card", 2),
    "in the warm-up": ("warm_up.train_further", 2),
    "before the first step": ("step", 2),
}


@pytest.mark.parametrize("when", STOPS)
def test_a_run_that_stops_between_stages_spends_nothing_twice(
    when: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what, released = STOPS[when]
    name = "stopped " + when
    with monkeypatch.context() as patch:
        if what == "card":
            patch.setattr(private_run.PrivateSession, "write_card", fail)
        elif what == "step":
            patch.setattr(PrivateTraining, "step", fail)
        elif what == "second release":
            real = warm_up_module.release
            calls: list[int] = []

            def once(*args: Any, **options: Any) -> Any:
                calls.append(1)
                return real(*args, **options) if len(calls) == 1 else fail()

            patch.setattr(warm_up_module, "release", once)
        else:
            patch.setattr(warm_up_module, what.split(".")[1], fail)
        with pytest.raises(Stop):
            start(place, name, epsilon=None, noise_multiplier=3.0)
    folder = run_folder(place, name)
    if not released:
        assert not (folder / "statistics.ckpt").exists()
        with pytest.raises(UserError, match=r"holds no whole checkpoint"):
            resume(folder)
        return
    before = load_releases(folder / "statistics.ckpt")[1]
    assert len(before) == released
    run = resume(folder)
    after = load_releases(run.statistics)[1]
    assert len(after) == 2
    assert all(
        torch.equal(one.sums[key], two.sums[key]) for one, two in zip(before, after, strict=False) for key in one.sums
    )
    card = ReleaseCard.read(run.privacy_card)
    assert [card.ledger.count(event) for event in EVENTS] == [1, 1]
    assert card.ledger.count(card.plan.event()) == 4 and card.private
    assert len(card.statistics) == 2


def test_the_draws_of_a_run_go_with_its_release(finished: RunDirectory, tmp_path: Path) -> None:
    release_run(finished.path, tmp_path / "release", ReleaseFacts(class_names=("a", "b")))
    place = tmp_path / "release" / "draws.safetensors"
    assert verify_release(tmp_path / "release").sound and place.read_bytes() == finished.draws.read_bytes()
    release_run(finished.path, tmp_path / "half", ReleaseFacts(class_names=("a", "b")), half=True)
    assert verify_release(tmp_path / "half").sound
    assert LatentDraws.read(tmp_path / "half" / "draws.safetensors").mixture.classes == 10
    images = [tmp_path / "draws.pt", tmp_path / "again.pt"]
    for output, model in zip(images, (finished.path, tmp_path / "release"), strict=True):
        dispatch(["sample", str(model), "--draws", "--output", str(output), "-n", "6", "--classes", "3", "7"])
    one, two = (SampleSet.load(path) for path in images)
    assert torch.equal(one.images, two.images) and one.labels.tolist() == [3, 3, 3, 7, 7, 7]
    assert float(one.images.std(dim=0).max()) > 0
    with pytest.raises(UserError, match="takes no diffusion step"):
        dispatch(["sample", str(finished.path), "--draws", "--output", str(images[0]), "--steps", "5"])

    drawn = LatentDraws.read(place)  # other numbers under the right account, with checksums that agree
    account = copy.deepcopy(checkpoint_metadata(read_checkpoint(place), "privacy"))
    replace(drawn, centre=drawn.centre + 1).save(place, account)
    sums = tmp_path / "release" / "SHA256SUMS"
    named = {name: digest for digest, name in (line.split("  ") for line in sums.read_text().splitlines())}
    named["draws.safetensors"] = file_digest(place)
    sums.write_text("".join(f"{digest}  {name}\n" for name, digest in named.items()))
    lines = verify_release(tmp_path / "release").lines()
    assert [line[:5] for line in lines].count("WRONG") == 1 and any("none of the" in line for line in lines)

    content = read_checkpoint(place)  # statistics of a run that the card does not charge
    account = copy.deepcopy(checkpoint_metadata(content, "privacy"))
    account["plan"]["noise_multiplier"] *= 2
    drawn.save(place, account)
    lines = verify_release(tmp_path / "release").lines()
    assert [line[:5] for line in lines].count("WRONG") == 2 and any("another plan" in line for line in lines)
    place.unlink()
    assert not verify_release(tmp_path / "release").sound
    with pytest.raises(UserError, match=r"no draws.safetensors"):
        dispatch(["sample", str(tmp_path / "release"), "--draws", "--output", str(images[0])])


def declaring(run: RunDirectory, place: Path) -> Path:
    """A copy of a run whose configuration declares draws, as the YAML of `dp-ldm new` does."""
    shutil.copytree(run.path, place)
    (config,) = (place / "configs").glob("*-project.yaml")
    config.write_text(config.read_text() + "sampling:\n  source: draws\n")
    return place


def test_what_is_declared_for_sampling_goes_with_the_release(
    finished: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = declaring(finished, tmp_path / "run"), tmp_path / "release"
    dispatch(["release", str(run), str(folder)])
    assert f"dp-ldm sample {folder} --output samples.png  # draws of the released statistics" in capsys.readouterr().out
    assert yaml.safe_load((folder / "config.yaml").read_text())["sampling"] == {"source": "draws"}
    dispatch(["verify", str(folder)])
    out = capsys.readouterr().out
    assert "images are drawn from draws.safetensors" in out and "every check passed" in out
    images = {}
    words = {
        "default": [],
        "draws": ["--draws"],
        "model": ["--source", "model", "--steps", "2"],
        "steps": ["--steps", "2"],
    }
    for name, more in words.items():
        output = tmp_path / f"{name}.pt"
        dispatch(["sample", str(folder), "--output", str(output), "-n", "4", "--classes", "3", "7", *more])
        images[name] = SampleSet.load(output).images
        taken = "the diffusion model" if name in ("model", "steps") else "draws of the released statistics"
        assert [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"source      {taken}")]
    assert torch.equal(images["default"], images["draws"]) and torch.equal(images["model"], images["steps"])
    assert not torch.equal(images["default"], images["model"])
    for part in ("1/2", "2/2"):
        shared = ["--output", str(tmp_path / "a.pt"), "-n", "4", "--classes", "3", "7", "--shard", part]
        dispatch(["sample", str(folder), *shared])
    assert torch.equal(SampleSet.load(tmp_path / "a.pt").images, images["draws"])
    with pytest.raises(UserError, match="a grid is drawn by one process"):
        dispatch(["sample", str(folder), "--output", str(tmp_path / "a.png"), "--shard", "1/2", "--seed", "0"])

    (folder / "draws.safetensors").unlink()  # and from the sums, as somebody who hides it would do
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    (folder / "SHA256SUMS").write_text("".join(f"{line}\n" for line in sums if "draws" not in line))
    lines = verify_release(folder).lines()
    assert [line[:5] for line in lines].count("WRONG") == 1 and any(
        "draws.safetensors is missing" in line for line in lines
    )
    (run / "draws.safetensors").unlink()
    with pytest.raises(UserError, match=r"draws\.safetensors: is missing.*--resume"):
        release_run(run, tmp_path / "other", ReleaseFacts())


def test_a_run_without_statistics_cannot_declare_draws(place: Path) -> None:
    config = config_of(place)
    del config["model"]["params"]["dp_config"]["warm_up"]
    with pytest.raises(UserError, match=r"sampling\.source: draws are those of"):
        train(tiny.options(place / "undeclared", {**config, "sampling": {"source": "draws"}}))
    assert not (place / "undeclared" / "logs").exists()


def test_a_finished_run_that_is_resumed_keeps_its_statistics(finished: RunDirectory) -> None:
    before = ReleaseCard.read(finished.privacy_card)
    resume(finished.path)
    assert ReleaseCard.read(finished.privacy_card) == before


def test_other_constants_are_refused_on_resume(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(warm_up_module, "train_further", fail)
        with pytest.raises(Stop):
            start(place, "changed", epsilon=None, noise_multiplier=3.0)
    with pytest.raises(UserError, match="other constants"):
        resume(run_folder(place, "changed"), "model.params.dp_config.warm_up.clip_norm=5.0")


def test_other_noise_is_refused_on_resume(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise of the steps was calibrated for the rounds as they were: others could exceed the target."""
    real, calls = warm_up_module.release, []

    def once(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return real(*args, **options) if len(calls) == 1 else fail()

    with monkeypatch.context() as patch:
        patch.setattr(warm_up_module, "release", once)
        with pytest.raises(Stop):
            start(place, "less noise", epsilon=None, noise_multiplier=3.0)
    less = "model.params.dp_config.warm_up.rounds=[{noise_multiplier: 8}, {noise_multiplier: 0.5, cells: 2}]"
    more = "model.params.dp_config.warm_up.rounds=[{noise_multiplier: 8}, {noise_multiplier: 9}, {noise_multiplier: 9}]"
    for change in (less, more):
        with pytest.raises(UserError, match="planned with noise multipliers 8, 9"):
            resume(run_folder(place, "less noise"), change)


def two_rounds(path: Path, rows: Tensor, labels: Tensor, ledger: Ledger, done: list[Release]) -> list[Release]:
    """The releases of a plan of two rounds without a model; the second one is centred, in leading directions."""
    second = {"noise_multiplier": 9, "cells": 2, "centred": True, "second_by_cell": True, "leading": 2}
    rounds = {**WARM_UP, "frame": "none", "classes": 2, "rounds": [{"noise_multiplier": 8}, second]}
    plan = PrivacyPlan(0.1, 4, 3.0, 1.0, DELTA, 10)
    return warm_up_module.release_rounds(
        StatisticsPlan.read(rounds), Frame.identity(3), plan, ledger, rows, labels, path, done
    )[1]


def test_a_second_process_in_the_folder_does_not_release_again(tmp_path: Path) -> None:
    rows, labels, path = torch.randn(40, 3), torch.arange(40) % 2, tmp_path / "statistics.ckpt"
    late = Ledger()
    releases = two_rounds(path, rows, labels, Ledger(), [])
    before = path.read_bytes()
    with pytest.raises(UserError, match="another process has released"):
        two_rounds(path, rows, labels, late, [])
    assert late.steps == 0 and path.read_bytes() == before, "nothing was asked, and nothing is forgotten"
    account, read = load_releases(path)
    assert len(two_rounds(path, rows, labels, Ledger.from_dict(account["ledger"]), read)) == len(releases) == 2


def test_answers_of_another_process_are_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process stores its answer while this one computes: between the first check and the write."""
    rows, labels, path = torch.randn(40, 3), torch.arange(40) % 2, tmp_path / "statistics.ckpt"

    def slow(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(warm_up_module, "release", release)
        two_rounds(path, rows, labels, Ledger(), [])
        return release(*args, **options)

    monkeypatch.setattr(warm_up_module, "release", slow)
    with pytest.raises(UserError, match="another process has released"):
        two_rounds(path, rows, labels, Ledger(), [])
    assert len(load_releases(path)[1]) == 2, "the other's answers and charges are kept"


def test_cells_and_norms_follow_from_releases_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers before, quite other records: the next query is the same."""
    generator = torch.Generator().manual_seed(0)
    people = [(torch.randn(40, 3, generator=generator), torch.arange(40) % 2)]
    people += [(5 + 9 * torch.randn(7, 3, generator=generator), torch.ones(7, dtype=torch.long))]
    first = two_rounds(tmp_path / "first.ckpt", *people[0], Ledger(), [])[:1]
    asked: list[ClassMoments] = []

    def note(query: ClassMoments, *args: Any, **options: Any) -> Any:
        asked.append(query)
        return release(query, *args, **options)

    monkeypatch.setattr(warm_up_module, "release", note)
    for number, (rows, labels) in enumerate(people):
        two_rounds(tmp_path / f"{number}.ckpt", rows, labels, Ledger(), list(first))
    one, other = asked
    assert one.describe() == other.describe()
    for name in ("anchors", "basis"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


# ---------------------------------------------------------------------- refusals


def test_a_warm_up_that_costs_more_than_the_budget_is_refused_before_a_record_is_read(place: Path) -> None:
    with pytest.raises(UserError, match="already costs more than epsilon 2"):
        start(place, "dear", warm_up={"rounds": [{"noise_multiplier": 0.5}]})
    assert not (place / "dear" / "logs").exists() or not list((place / "dear" / "logs").iterdir())
