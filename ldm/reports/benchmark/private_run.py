"""`PrivateRun`: the stages of one private run at one epsilon, and of the baselines at this epsilon."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ldm.config import instantiate_from_config, load_config, to_plain
from ldm.errors import UserError
from ldm.privacy.card import ReleaseCard
from ldm.reports.benchmark.config import BenchmarkConfig, delta_for
from ldm.reports.benchmark.direct import direct_accuracy
from ldm.reports.benchmark.linear import linear_accuracy, linear_section
from ldm.reports.benchmark.machine import trainer_flags
from ldm.reports.benchmark.options import BenchmarkOptions
from ldm.reports.benchmark.shared import Shared
from ldm.reports.benchmark.stages import Result, Stage
from ldm.reports.benchmark.statistics_only import draws_of
from ldm.training import RunOptions, train

logger = logging.getLogger(__name__)

#: Rates on one idle core in records per second, for the first estimate of the remaining time: private training, plain
#: training, and encoding of `RECORDS` images.
PRIVATE, PLAIN, ENCODED, RECORDS = 900.0, 1200.0, 900.0, 60_000


class PrivateRun:
    """One private run at one epsilon, its samples and score; the first run has the baselines at this epsilon too."""

    def __init__(
        self,
        config: BenchmarkConfig,
        options: BenchmarkOptions,
        shared: Shared,
        epsilon: str,
        folder: Path,
        first: bool,
    ):
        self.config, self.options, self.shared, self.folder = config, options, shared, folder
        self.epsilon, self.first = epsilon, first

    @property
    def settings(self) -> dict[str, Any]:
        """What the results of this run depend on, as plain values."""
        direct, linear = asdict(self.config.direct), dict(self.config.linear)
        return {**self.shared.settings, "budget": dict(self._budget()), "direct": direct, "linear": linear}

    def stages(self) -> list[Stage]:
        """The stages in running order; the private row comes first."""
        run = self._run_config()
        dp, trainer = run["model"]["params"]["dp_config"], run["lightning"]["trainer"]
        rows = trainer.get("max_steps", 0) * run["data"]["params"]["batch_size"]
        warm = ((dp.get("warm_up") or {}).get("training") or {"steps": 0}).get("steps", 0) * 256
        training = rows * dp.get("noise_multiplicity", 1) / PRIVATE + warm / PLAIN + RECORDS / ENCODED
        name, scoring = f"epsilon {self.epsilon}, {self.folder.name}", self.shared.scoring_seconds
        sampling = self.shared.sampling_seconds
        found = [
            Stage("private", f"{name}: private training", self.folder, training, self._train),
            Stage("samples", f"{name}: {self.config.samples} samples", self.folder, sampling, self._sample),
            Stage("score", f"{name}: classifier on samples", self.folder, scoring, self._score),
        ]
        if self.warm_up.get("classifier"):
            title = f"{name}: classifier on samples with private labels"
            found.insert(2, Stage("score_labels", title, self.folder, scoring + 60, self._score_labels))
        wanted = self.options.baselines if self.first else ()
        if "statistics" in wanted and warm:
            found.append(Stage("statistics", f"{name}: statistics alone", self.folder, scoring + 60, self._statistics))
        if "warm" in wanted and warm:
            found.append(Stage("warm", f"{name}: before DP-SGD", self.folder, sampling + scoring, self._warm))
        if "direct" in wanted:
            seconds = self.config.direct.steps * self.config.direct.batch_size / PRIVATE
            found.append(Stage("direct", f"{name}: DP classifier", self.folder, seconds, self._direct))
        if "linear" in wanted and self.config.linear:
            found.append(Stage("linear", f"{name}: linear DP classifier", self.folder, 180, self._linear))
        if "plain" in wanted:
            seconds = rows / PLAIN + sampling + scoring
            found.append(Stage("plain", f"{name}: without privacy", self.folder, seconds, self._plain))
        return found

    @property
    def run_dir(self) -> Path:
        """The directory of the private run."""
        return latest_run(self.folder / "runs")

    def _train(self) -> Result:
        train_or_resume(self.folder / "runs", self.shared.write_overlay(self.folder, self._account(), self._budget()))
        card = ReleaseCard.read(self.run_dir)
        spent = card.epsilons()
        return {"epsilon": next(iter(spent.values())), "delta": card.plan.delta, "statement": card.statement()}

    def _account(self) -> dict[str, Any]:
        """The public number of records and delta of the set that is private, and the target."""
        records = len(instantiate_from_config(self.shared.train_node))
        account = {"epsilon": float(self.epsilon), "dataset_size": records, "delta": delta_for(records)}
        return {"model": {"params": {"dp_config": account}}}

    def _budget(self) -> Mapping[str, Any]:
        return self.config.budget(self.epsilon)

    def _run_config(self) -> dict[str, Any]:
        """The configuration of the private run with the settings of this epsilon, as plain values."""
        run: dict[str, Any] = to_plain(
            OmegaConf.merge(load_config([self.config.run]), OmegaConf.create(dict(self._budget())))
        )
        return run

    def _sample(self) -> Result:
        self.shared.sample(self.run_dir / "checkpoints" / "last.ckpt", self.folder / "samples.pt")
        return {"count": self.config.samples}

    @cached_property
    def warm_up(self) -> Mapping[str, Any]:
        """The section ``dp_config.warm_up`` of the run at this epsilon."""
        return self._run_config()["model"]["params"]["dp_config"].get("warm_up") or {}

    def _score(self) -> Result:
        return self.shared.score_file(self.folder / "samples.pt")

    def _score_labels(self) -> Result:
        return self.shared.score_private_labels(self.folder / "samples.pt", self.run_dir, self.warm_up)

    def _statistics(self) -> Result:
        samples = draws_of(self.run_dir, self.config.run, self._budget(), self.config.samples)
        return self.shared.score(samples)

    def _warm(self) -> Result:
        self.shared.sample(self.run_dir / "warm_up.ckpt", self.folder / "warm.pt")
        return self.shared.score_file(self.folder / "warm.pt")

    def _direct(self) -> Result:
        records, test, protocol = self.shared.records, self.shared.test, self.config.protocol
        classes, epsilon, how = self.config.classes, float(self.epsilon), self.config.direct
        return direct_accuracy(records, test, classes, epsilon, how, protocol.size, protocol.grey)

    def _linear(self) -> Result:
        settings = linear_section(self.config.linear, self.epsilon)
        records, test, classes = self.shared.records, self.shared.test, self.config.classes
        return linear_accuracy(records, test, classes, float(self.epsilon), settings)

    def _plain(self) -> Result:
        folder = self.folder / "plain"
        off = {"model": {"params": {"dp_config": {"enabled": False, "warm_up": None}}}}
        train_or_resume(folder / "runs", self.shared.write_overlay(folder, self._account(), self._budget(), off))
        self.shared.sample(latest_run(folder / "runs") / "checkpoints" / "last.ckpt", folder / "samples.pt")
        return self.shared.score_file(folder / "samples.pt")


def latest_run(folder: Path) -> Path:
    """The only run directory in ``folder``, or the latest. Raises UserError when there is none."""
    runs = sorted(path for path in folder.glob("*") if path.is_dir())
    if not runs:
        raise UserError(f"{folder}: holds no run")
    return runs[-1]


def train_or_resume(folder: Path, base: Path) -> None:
    """Start the run of ``base``, or resume the one that was stopped; its ledger keeps the steps already taken."""
    begun = sorted(path for path in folder.glob("*") if path.is_dir())
    usable = begun and (
        (begun[-1] / "statistics.ckpt").is_file() or (begun[-1] / "checkpoints" / "last.ckpt").is_file()
    )
    common: dict[str, Any] = {"train": True, "no_test": True, "scale_lr": False, "trainer": trainer_flags()}
    if usable:
        logger.info("going on with %s", begun[-1])
        train(RunOptions(base=[], resume=str(begun[-1]), **common))
    else:
        train(RunOptions(base=[str(base)], logdir=str(folder), name="run", **common))
