"""The benchmark files: what they spend, that they agree with their runs, and that each run takes two private steps.

Full-size models are not built here; runs are of the same files shrunk, on made-up records.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from ldm.checkpoint import read_checkpoint, save_checkpoint
from ldm.config import get_obj_from_str, load_config, to_plain
from ldm.errors import UserError
from ldm.privacy.accounting import calibrate
from ldm.privacy.statistics import Frame
from ldm.reports.benchmark import BenchmarkConfig, BenchmarkOptions, run_benchmark
from ldm.reports.benchmark.config import delta_for
from ldm.training.public_frame import save_frame
from ldm.training.statistics_plan import StatisticsPlan
from tests import shipped, tiny
from tests.shipped import CONFIGS
from tests.tiny_runs import Commands, commands

__all__ = ["commands"]

FOLDER = CONFIGS / "benchmark"
ON_A_GPU = {  # benchmark of one GPU -> private records, classes
    "cifar10": (50_000, 10),
    "celeba32": (162_770, 2),
    "celeba64": (162_770, 2),
    "celebahq": (28_000, 2),
    "camelyon32": (302_436, 2),
}
ON_A_CPU = {"mnist": (60_000, 10), "fmnist": (60_000, 10), "mnist-glyphs": (60_000, 10)}
EVERY = {**ON_A_GPU, **ON_A_CPU}


def at_budget(name: str, epsilon: str) -> Any:
    """The settings of a benchmark's private run at an epsilon."""
    benchmark = BenchmarkConfig.read(FOLDER / f"{name}.yaml")
    return OmegaConf.merge(load_config([benchmark.run]), OmegaConf.create(dict(benchmark.budget(epsilon))))


def test_every_benchmark_is_tested_here() -> None:
    runs = {path.stem.removesuffix("-run") for path in FOLDER.glob("*-run.yaml")}
    assert runs == set(EVERY)


@pytest.mark.parametrize("name", EVERY)
def test_a_benchmark_agrees_with_its_run(name: str) -> None:
    records, classes = EVERY[name]
    benchmark = BenchmarkConfig.read(FOLDER / f"{name}.yaml")
    assert benchmark.classes == classes and {"1", "10"} <= set(benchmark.budgets)
    for epsilon in benchmark.budgets:
        run = at_budget(name, epsilon)
        dp, params = run.model.params.dp_config, run.model.params
        assert dp.dataset_size == records and dp.delta == pytest.approx(delta_for(records), rel=1e-4)
        assert dp.warm_up.classes == classes <= params.cond_stage_config.params.n_classes
        assert params.monitor is None and run.data.params.get("validation") is None
        assert run.lightning.trainer.get("max_epochs") is None
        assert params.scheduler_config.params.cycle_lengths[0] == run.lightning.trainer.max_steps  # decays to the end
        assert dp.public_data and StatisticsPlan.read(to_plain(dp.warm_up)).training.steps
    get_obj_from_str(benchmark.test["target"])
    BenchmarkConfig.read(FOLDER / f"{name}.yaml", quick=True)


@pytest.mark.parametrize("name", ON_A_GPU)
def test_a_benchmark_for_a_gpu_starts_from_named_public_files(name: str) -> None:
    """They are the run's own, and the document has the section that the message points to."""
    benchmark = BenchmarkConfig.read(FOLDER / f"{name}.yaml")
    params = at_budget(name, "1").model.params
    assert set(benchmark.files) == {params.ckpt_path, params.dp_config.warm_up.frame}
    page = (CONFIGS.parent / "docs" / "benchmarks.md").read_text()
    for file, how in benchmark.files.items():
        (section,) = re.findall(r'"(.+)"', how)
        assert f"### {section}\n" in page and file in page
    assert benchmark.classifiers == ("wrn-40-4", "resnet-110", "resnext-29")
    assert not benchmark.protocol.uses_test_for_selection and benchmark.protocol.selection == "held-out"


@pytest.mark.parametrize("name", ON_A_GPU)
@pytest.mark.parametrize("epsilon", ["1", "10"])
def test_statistics_take_a_twentieth_of_the_budget(name: str, epsilon: str) -> None:
    """Gaussian mechanisms on all records compose by the sum of 1 / sigma^2 (Dong et al. 2022, corollary 2)."""
    records, classes = ON_A_GPU[name]
    alone = calibrate(target_epsilon=float(epsilon), delta=delta_for(records), sample_rate=1.0, steps=1)
    rounds = at_budget(name, epsilon).model.params.dp_config.warm_up.rounds
    share = sum(alone**2 / entry.noise_multiplier**2 for entry in rounds)
    assert 0.045 <= share <= 0.056
    for entry in rounds:  # noise on a count, beside the records of a class or cell
        assert entry.noise_multiplier / (records / classes / entry.get("cells", 1)) < 0.0051


@pytest.mark.parametrize("size", ["32", "64"])
def test_timesteps_of_the_warm_up_have_as_much_noise_as_signal(size: str) -> None:
    params = at_budget(f"celeba{size}", "1").model.params
    start, end = params.linear_start**0.5, params.linear_end**0.5
    first = params.dp_config.warm_up.training.first_timestep
    kept = math.prod(1 - (start + (end - start) * step / (params.timesteps - 1)) ** 2 for step in range(first + 1))
    assert 0.9 < math.sqrt((1 - kept) / kept) < 1.0


# ---------------------------------------------------------------------- whole runs


def public_files(base: Path, folder: Path) -> tuple[Path, Path]:
    """The shrunk public model of a run's base file, and directions of its latents."""
    config = shipped.shrunk(base, folder)
    section = to_plain(config.model)
    section.pop("base_learning_rate")
    torch.manual_seed(0)
    model = tiny.build(section)
    tiny.scatter(model)
    if model.use_ema:
        model.model_ema.reset(model.model)
    save_checkpoint({"state_dict": model.state_dict(), "model_config": section}, folder / "public.ckpt")
    latents = torch.randn(60, model.channels, model.image_size, model.image_size)
    save_frame(Frame.fit(latents, 8), folder / "frame.safetensors", "random numbers")
    return folder / "public.ckpt", folder / "frame.safetensors"


@pytest.mark.parametrize(
    ("name", "epsilon"),
    [*((name, "10") for name in EVERY), *(pytest.param(name, "1", marks=pytest.mark.slow) for name in EVERY)],
)
def test_the_private_run_releases_statistics_and_takes_two_steps(name: str, epsilon: str, commands: Commands) -> None:
    benchmark = BenchmarkConfig.read(FOLDER / f"{name}.yaml")
    public, frame = public_files(shipped.chain(benchmark.run)[1], commands.folder)
    above = {"base": str(benchmark.run), **to_plain(benchmark.budget(epsilon))}
    (commands.folder / "above.yaml").write_text(yaml.safe_dump(above))
    stage = at_budget(name, epsilon).model.params.first_stage_config.params.ddconfig
    records = {"classes": benchmark.classes, "channels": stage.in_channels}
    config = shipped.shrunk(commands.folder / "above.yaml", commands.folder, records)
    dp = config.model.params.dp_config
    dp.epsilon = float(epsilon)  # as scripts/benchmark.py sets it
    dp.warm_up.update(frame=str(frame), classifier=None)  # its features are of 32x32 images
    for each in dp.warm_up.rounds:
        if "leading" in each:
            each.leading = 4  # of the 8 directions of the small frame
    dp.warm_up.training.update(steps=2, batch_size=4)
    config.lightning.trainer.update(max_epochs=None, max_steps=2)
    file = commands.folder / f"{name}.yaml"
    file.write_text(OmegaConf.to_yaml(config))
    words = ["--base", file, "-t", "--accelerator", "cpu", "--allow-target", "tests"]
    assert commands.train(*words, f"model.params.ckpt_path={public}") == 0, commands.err

    (run,) = commands.runs()
    card = yaml.safe_load((run / "privacy.json").read_text())
    assert len(card["statistics"]) == len(dp.warm_up.rounds) and card["private"]
    assert card["steps"] == {"taken": 2, "planned": 2}
    content = read_checkpoint(run / "checkpoints" / "last.ckpt")
    warm = read_checkpoint(run / "warm_up.ckpt")["state_dict"]
    moved = {key for key, value in content["state_dict"].items() if key in warm and not torch.equal(value, warm[key])}
    trained = set(card["trained"]["parameters"])
    assert trained and {key for key in moved if key.startswith(("model.", "cond_", "first_"))} == trained


def test_a_missing_public_model_is_named_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = BenchmarkOptions(str(FOLDER / "cifar10.yaml"), ("1",), output=str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"imagenet32-conditional/model\.safetensors is missing; type the commands of"):
        run_benchmark(options)
    assert not (tmp_path / "out").exists()
