"""`StatisticsRun`: the stages of a run that spends the whole budget on statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldm.reports.benchmark.config import BenchmarkConfig, statistics_section
from ldm.reports.benchmark.options import BenchmarkOptions
from ldm.reports.benchmark.private_run import ENCODED, PLAIN, RECORDS
from ldm.reports.benchmark.shared import Shared
from ldm.reports.benchmark.stages import Result, Stage
from ldm.reports.benchmark.statistics_only import draws_of, release_statistics, train_on_release


class StatisticsRun:
    """The whole budget spent on statistics, scored by draws alone and by the public model trained on draws."""

    def __init__(self, config: BenchmarkConfig, options: BenchmarkOptions, shared: Shared, epsilon: str, folder: Path):
        self.config, self.options, self.shared = config, options, shared
        self.epsilon, self.folder = epsilon, folder
        self.warm_up = statistics_section(config, epsilon)

    @property
    def settings(self) -> dict[str, Any]:
        """What the results of this run depend on, as plain values."""
        return {**self.shared.settings, "statistics_only": self.warm_up}

    def stages(self) -> list[Stage]:
        """Release and further training; samples of both kinds; a classifier on each."""
        name, scoring = f"statistics only, epsilon {self.epsilon}, {self.folder.name}", self.shared.scoring_seconds
        sampling = self.shared.sampling_seconds
        found = [
            Stage("release", f"{name}: encoding and release", self.folder, RECORDS / ENCODED, self._release),
            Stage("score_draws", f"{name}: classifier on draws", self.folder, scoring + 60, self._draws),
        ]
        if self.warm_up.get("classifier"):
            title = f"{name}: classifier on draws with private labels"
            found.append(Stage("score_draw_labels", title, self.folder, scoring + 60, self._draw_labels))
        training = self.warm_up.get("training", {})
        if training.get("steps") and not self.options.draws_only:
            seconds = training["steps"] * training.get("batch_size", 256) / PLAIN
            found += [
                Stage("further", f"{name}: public model trained on draws", self.folder, seconds, self._further),
                Stage(
                    "score_model", f"{name}: classifier on its samples", self.folder, scoring + sampling, self._model
                ),
            ]
        return found

    def _release(self) -> Result:
        return release_statistics(
            self.folder / "run", self.config.run, self.warm_up, self.shared.train_node, float(self.epsilon)
        )

    def _further(self) -> Result:
        train_on_release(self.folder / "run", self.config.run, self.warm_up)
        return {}

    def _draws(self) -> Result:
        warm_up = {"model": {"params": {"dp_config": {"warm_up": self.warm_up}}}}
        samples = draws_of(self.folder / "run", self.config.run, warm_up, self.config.samples)
        samples.save(self.folder / "draws.pt")
        return self.shared.score(samples)

    def _draw_labels(self) -> Result:
        return self.shared.score_private_labels(self.folder / "draws.pt", self.folder / "run", self.warm_up)

    def _model(self) -> Result:
        self.shared.sample(self.folder / "run" / "warm_up.ckpt", self.folder / "samples.pt")
        return self.shared.score_file(self.folder / "samples.pt")
