"""A benchmark on tiny models: its stages, going on after a stop, rehearsals, the table, and what it refuses."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from dp_accounting.dp_event import GaussianDpEvent
from dp_accounting.pld import PLDAccountant

from ldm.errors import UserError
from ldm.modules.feature_map import FeatureMap
from ldm.privacy.card import ReleaseCard
from ldm.privacy.statistics import Frame
from ldm.reports.benchmark import BenchmarkConfig, BenchmarkOptions, direct, linear, run_benchmark, shared
from ldm.reports.benchmark import private_run as private_stages
from ldm.reports.benchmark.config import DirectTraining, delta_for
from ldm.reports.benchmark.direct import direct_accuracy
from ldm.reports.benchmark.options import BASELINES
from ldm.reports.benchmark.settings import keep_settings
from ldm.reports.benchmark.stages import Stage, run_stages
from ldm.reports.benchmark.statistics_only import plan_of_queries, shared_out
from ldm.reports.benchmark.table import collect_rows, format_table
from ldm.samples import SampleSet
from ldm.training import private_run
from ldm.training.private_classifier import save_feature_map
from ldm.training.public_frame import save_frame
from scripts import benchmark as verb
from tests import tiny


def stage(folder: Path, key: str, seconds: float, calls: list[str], **result: Any) -> Stage:
    def run() -> dict[str, Any]:
        calls.append(key)
        return result

    return Stage(key, f"the {key}", folder, seconds, run)


def test_a_stage_is_done_once_and_the_rest_is_estimated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []
    first, second = stage(tmp_path, "one", 100, calls, a=1), stage(tmp_path, "two", 60, calls, b=2)
    with caplog.at_level(logging.INFO, "ldm"):
        results = run_stages([first, second])
    assert "about 3 min left" in caplog.text and calls == ["one", "two"]
    assert results["one"]["a"] == 1 and results["two"]["seconds"] >= 0 and results["two"]["peak_mib"] > 10
    run_stages([first, second])
    assert calls == ["one", "two"]
    second.path.unlink()
    run_stages([first, second])
    assert calls == ["one", "two", "two"]


def test_a_stage_that_fails_is_not_done(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stages([Stage("one", "one", tmp_path, 1.0, fail)])
    assert not list(tmp_path.iterdir())


def test_results_of_other_settings_are_refused(tmp_path: Path) -> None:
    keep_settings(tmp_path / "run0", {"samples": 40, "protocol": {"epochs": 6, "augment": ()}})
    keep_settings(tmp_path / "run0", {"samples": 40, "protocol": {"epochs": 6, "augment": ()}})
    with pytest.raises(UserError, match=r"run0: .* \(protocol.epochs: 6, now 20\); name another --output"):
        keep_settings(tmp_path / "run0", {"samples": 40, "protocol": {"epochs": 20, "augment": ()}})
    with pytest.raises(UserError, match="linear: null, now 1"):
        keep_settings(tmp_path / "run0", {"samples": 40, "protocol": {"epochs": 6, "augment": ()}, "linear": 1})


def test_the_table_takes_repeats_together_and_adds_what_a_row_cost(tmp_path: Path) -> None:
    for number, accuracy in enumerate((0.95, 0.97)):
        for key, content in (("private", {"epsilon": 0.99}), ("samples", {}), ("score", {"accuracies": [accuracy]})):
            path = tmp_path / "eps1" / f"run{number}" / f"{key}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({**content, "seconds": 60, "peak_mib": 900}))
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "real.json").write_text(json.dumps({"accuracies": [0.99], "seconds": 30, "peak_mib": 700}))
    rows = {row.key: row for row in collect_rows(tmp_path)}
    assert rows["score"].mean == pytest.approx(0.96) and rows["score"].deviation == pytest.approx(0.01414, rel=0.01)
    assert rows["score"].seconds == 180 and rows["real"].deviation is None
    text = format_table(collect_rows(tmp_path))
    assert "96.00 ± 1.41" in text and "| 99.00 |" in text


def test_several_classifiers_have_a_mean_and_a_best(tmp_path: Path) -> None:
    for number, scores in enumerate(({"cnn": 0.9, "mlp": 0.8}, {"cnn": 0.7, "mlp": 0.74})):
        path = tmp_path / "eps1" / f"run{number}" / "score.json"
        path.parent.mkdir(parents=True)
        mean = sum(scores.values()) / 2
        path.write_text(json.dumps({"accuracies": [mean], "classifiers": scores, "seconds": 1, "peak_mib": 1}))
    (row,) = collect_rows(tmp_path)
    assert row.mean == pytest.approx((0.85 + 0.72) / 2) and row.best == pytest.approx((0.9 + 0.74) / 2)
    head, _, line = format_table([row]).splitlines()
    assert head.split(" | ")[3] == "best classifier" and "78.50 ± 9.19 | 82.00 | 2" in line
    assert "best classifier" not in format_table([replace(row, best=None)])


def test_delta_is_that_of_the_field() -> None:
    assert delta_for(60_000) == pytest.approx(1.515e-6, rel=1e-3)


def test_a_classifier_is_trained_with_dp_and_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    images = torch.full((60, 1, 28, 28), -1.0)
    for label in range(3):
        images[labels == label, :, 8 * label : 8 * label + 8] = 1.0
    images += 0.1 * torch.randn(images.shape, generator=generator)
    how = DirectTraining(classifier="logreg", batch_size=30, steps=40, learning_rate=0.02, max_grad_norm=1.0)
    found = direct_accuracy(SampleSet(images, labels), SampleSet(images, labels), 3, 100.0, how)
    assert found["accuracies"][0] > 0.7  # a third by chance; the noise is secret, so the number varies
    assert 99 < found["epsilon"] <= 100 and found["delta"] == pytest.approx(delta_for(60))


def test_private_baselines_have_the_public_number_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one more than the largest label, which may be that of a single record."""
    samples = SampleSet(torch.zeros(6, 1, 28, 28), torch.arange(6) % 2)
    asked: list[int] = []

    class Asked(Exception):
        pass

    def stop(*given: Any, num_classes: int = 0, **_: Any) -> None:
        asked.append(num_classes or given[2])
        raise Asked

    monkeypatch.setattr(direct, "build_classifier", stop)
    monkeypatch.setattr(linear, "fit_linear", stop)
    monkeypatch.setattr(linear, "load_feature_map", lambda path: lambda images: images.flatten(1))
    with pytest.raises(Asked):
        direct_accuracy(samples, samples, 5, 1.0, DirectTraining(steps=2, batch_size=3))
    with pytest.raises(Asked):
        linear.linear_accuracy(samples, samples, 5, 1.0, {"features": "none"})
    assert asked == [5, 5]


# ---------------------------------------------------------------------- the whole chain


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A benchmark file with everything that it names, on 24 images of 8x8."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(private_run, "EpsilonMeter", lambda plan, history=(), others=(): lambda steps: 0.0)
    digits = {
        "target": "ldm.data.mnist.MNISTTrain",
        "params": {"root": str(tiny.write_digits(tmp_path / "digits")), "size": tiny.SIDE, "channels": 1},
    }
    tiny.public_checkpoint(tmp_path / "public.ckpt")
    public = torch.randn(100, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    save_frame(Frame.fit(public, 4), tmp_path / "frame.safetensors", "random numbers")
    images = torch.rand(40, 1, tiny.SIDE, tiny.SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    save_feature_map(FeatureMap.fit(images, 6), tmp_path / "features.safetensors", "random images")
    features = {"features": str(tmp_path / "features.safetensors"), "steps": 3}
    warm_up = {
        "frame": str(tmp_path / "frame.safetensors"),
        "clip_norm": 3.0,
        "classes": 10,
        "rounds": [{"noise_multiplier": 30.0}],
        "training": {"steps": 2, "batch_size": 8},
    }
    private_labels = {
        "model": {"params": {"dp_config": {"warm_up": {"classifier": {**features, "noise_multiplier": 9}}}}}
    }
    dp = {"enabled": True, "max_grad_norm": 0.1, "warm_up": warm_up}
    model = tiny.ldm(ckpt_path=str(tmp_path / "public.ckpt"), train_condition_only=True, dp_config=dp)
    run = tiny.run_config(model, tmp_path / "digits", max_steps=3)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    benchmark = {
        "title": "tiny",
        "run": "run.yaml",
        "test": digits,
        "rehearsal": {"train": digits, "test": digits},
        "samples": 40,
        "sampling": {"sampler": "dpm", "steps": 2, "eta": 0.0, "batch_size": 20},
        "classifier": {"name": "logreg", "protocol": "held-out", "epochs": 1},
        "budgets": {"1": {}, "10": private_labels},
        "statistics_only": {
            **warm_up,
            "rounds": [{}],
            "classifier": {**features, "share": 0.3},
            "budgets": {"1": {"rounds": [{}, {"cells": 2}]}},
        },
        "linear": {**features, "budgets": {"10": {"learning_rate": 5.0}}},
        "direct": {"classifier": "logreg", "batch_size": 8, "steps": 2},
        "quick": {"samples": 20},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(benchmark))
    return tmp_path


def options(folder: Path, **changes: Any) -> BenchmarkOptions:
    given = {"config": str(folder / "tiny.yaml"), "epsilons": ("10",), "output": str(folder / "out"), "baselines": ()}
    return BenchmarkOptions(**{**given, **changes})


@pytest.mark.slow
def test_the_whole_chain_gives_every_row_and_is_not_run_twice(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_benchmark(options(files, baselines=BASELINES))
    rows = {row.key: row for row in collect_rows(folder)}
    assert set(rows) == {"score", "score_labels", "statistics", "warm", "direct", "linear", "plain", "public", "real"}
    (run,) = (folder / "eps10" / "run0" / "runs").iterdir()
    card = ReleaseCard.read(run / "privacy.json")
    assert card.private and 9.9 < next(iter(card.epsilons().values())) <= 10
    assert card.plan.delta == pytest.approx(delta_for(24)) and len(card.statistics) == 2
    assert len(SampleSet.load(folder / "eps10" / "run0" / "samples.pt")) == 40
    (plain,) = (folder / "eps10" / "run0" / "plain").glob("runs/*/privacy.json")
    assert json.loads(plain.read_text())["private"] is False

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a stage that is done was run again")

    for module, name in ((private_stages, "train"), (shared, "write_samples"), (shared, "downstream_accuracy")):
        monkeypatch.setattr(module, name, never)
    run_benchmark(options(files, baselines=BASELINES))


@pytest.mark.slow
def test_a_run_that_stops_in_training_goes_on_with_the_same_statistics(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def fail(*_: Any, **__: Any) -> None:
        raise Stop

    from ldm.models.diffusion.private_training import PrivateTraining

    with monkeypatch.context() as patch:
        patch.setattr(PrivateTraining, "step", fail)
        with pytest.raises(Stop):
            run_benchmark(options(files))
    folder = run_benchmark(options(files))
    (run,) = (folder / "eps10" / "run0" / "runs").iterdir()
    card = ReleaseCard.read(run / "privacy.json")
    assert card.ledger.steps == 1 + 3 + 3 and next(iter(card.epsilons().values())) <= 10


@pytest.mark.slow
def test_statistics_alone_spend_the_budget_and_a_rehearsal_has_its_own_folder(files: Path) -> None:
    folder = run_benchmark(options(files, epsilons=("1",), statistics_only=True, rehearse=True, quick=True))
    assert folder.name == "tiny-quick-rehearsal"
    place = folder / "eps1" / "stats0"
    card = ReleaseCard.read(place / "run" / "privacy.json")
    assert card.ledger.steps == 2 + 3 and 0.99 < next(iter(card.epsilons().values())) <= 1.0001 and card.private
    assert card.to_dict()["steps"] == {"taken": 2, "planned": 2}
    assert {row.key for row in collect_rows(folder)} == {"score_draws", "score_draw_labels", "score_model"}
    assert len(SampleSet.load(place / "draws.pt")) == 20


def test_rounds_share_the_budget_as_they_say() -> None:
    """Shares of the sum of 1 / sigma^2, by an accountant of another library."""
    section = {
        "frame": "frame.safetensors",
        "clip_norm": 4.0,
        "classes": 2,
        "rounds": [{"share": 0.1, "weights": [1, 1, 0]}, {"share": 0.9, "centred": True, "clip_norm": 2.0}],
    }
    rounds = shared_out(section, 1.0, 60_000).rounds
    first, second = (entry.noise_multiplier for entry in rounds)
    assert first / second == pytest.approx(3)
    accountant = PLDAccountant()
    for sigma in (first, second):
        accountant.compose(GaussianDpEvent(sigma))
    assert 0.99 < accountant.get_epsilon(delta_for(60_000)) <= 1.0001
    plan = plan_of_queries(shared_out(section, 1.0, 60_000), 60_000)
    assert (plan.steps, plan.noise_multiplier) == (1, second)
    with pytest.raises(UserError, match="shares are"):
        shared_out({**section, "rounds": [{"share": 0}]}, 1.0, 60_000)


def test_baselines_alone_need_no_private_run(files: Path) -> None:
    folder = run_benchmark(options(files, baselines=("linear", "warm"), only_baselines=True))
    (row,) = collect_rows(folder)
    assert row.key == "linear" and not (folder / "eps10" / "run0" / "runs").exists()
    content = json.loads((folder / "eps10" / "run0" / "linear.json").read_text())
    assert 9.9 < content["epsilon"] <= 10 and 0 <= content["accuracies"][0] <= 1
    with pytest.raises(UserError, match=r"linear.budgets has no epsilon 1; there is 10"):
        run_benchmark(options(files, epsilons=("1",), baselines=("linear",), only_baselines=True))


def test_every_classifier_of_a_row_is_trained(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = yaml.safe_load((files / "tiny.yaml").read_text())
    content["classifier"] = {"names": ["logreg", "mlp"], "protocol": "held-out", "epochs": 1}
    (files / "tiny.yaml").write_text(yaml.safe_dump(content))
    folder = run_benchmark(options(files, baselines=("real",), only_baselines=True))
    real = json.loads((folder / "shared" / "real.json").read_text())
    assert set(real["classifiers"]) == {"logreg", "mlp"}
    assert real["accuracies"] == [pytest.approx(sum(real["classifiers"].values()) / 2)]
    content["classifier"]["names"] = ["logreg", "mpl"]
    (files / "tiny.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="did you mean 'mlp'"):
        BenchmarkConfig.read(files / "tiny.yaml")


def test_what_a_file_needs_and_lacks_is_said_first(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    content = yaml.safe_load((files / "tiny.yaml").read_text())
    content.pop("rehearsal")
    content["files"] = {"public.ckpt": "it is there", "lost.ckpt": "type make lost"}
    (files / "tiny.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"lost\.ckpt is missing; type make lost"):
        run_benchmark(options(files))
    content.pop("files")
    (files / "tiny.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"no rehearsal\.train"):
        run_benchmark(options(files, rehearse=True))


def test_the_accelerator_of_the_environment_is_that_of_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    from ldm.reports.benchmark import machine
    from ldm.training import devices

    monkeypatch.delenv(machine.VARIABLE, raising=False)
    assert machine.device() == torch.device("cpu") and machine.trainer_flags()["accelerator"] == "cpu"
    monkeypatch.setenv(machine.VARIABLE, "gpu")
    monkeypatch.setattr(devices, "gpu_count", lambda: 1)
    assert machine.device() == torch.device("cuda:0") and machine.trainer_flags()["accelerator"] == "gpu"
    monkeypatch.setattr(devices, "gpu_count", lambda: 0)
    with pytest.raises(UserError, match="no GPU is visible"):
        machine.device()


def test_mistakes_are_named_before_anything_is_run(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no budget for epsilon 3; there is 1, 10"):
        run_benchmark(options(files, epsilons=("3",)))
    with pytest.raises(UserError, match="--repeat 0"):
        run_benchmark(options(files, repeat=0))
    with pytest.raises(UserError, match="--baselines reel"):
        run_benchmark(options(files, baselines=("reel",)))
    content = yaml.safe_load((files / "tiny.yaml").read_text())
    (files / "wrong.yaml").write_text(yaml.safe_dump({**content, "sample": 3}))
    with pytest.raises(UserError, match=r"unknown key 'sample'.*samples"):
        BenchmarkConfig.read(files / "wrong.yaml")
    assert BenchmarkConfig.read(files / "tiny.yaml", quick=True).samples == 20
    with pytest.raises(SystemExit):
        verb.main(["--epsilom", "1"])
