"""`Shared`: the part of a benchmark that does not depend on epsilon."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ldm.config import instantiate_from_config, load_config, section_at, to_plain
from ldm.errors import UserError
from ldm.evaluation.classifiers.downstream import downstream_accuracy
from ldm.evaluation.inputs.sources import collect
from ldm.files import write_text
from ldm.inference import ModelSource, SamplePlan, write_samples
from ldm.reports.benchmark.config import BenchmarkConfig
from ldm.reports.benchmark.machine import device
from ldm.reports.benchmark.options import BenchmarkOptions
from ldm.reports.benchmark.stages import Result, Stage
from ldm.reports.benchmark.statistics_only import labelled_by
from ldm.samples import SampleSet

#: Rates on one idle core, for the first estimate of the remaining time: images sampled, and images that the classifier
#: trains on, per second.
SAMPLES_A_SECOND, CLASSIFIER = 110.0, 2000.0


class Shared:
    """The common part of all runs: data, sampling, scoring, and the baselines that do not depend on epsilon."""

    def __init__(self, config: BenchmarkConfig, options: BenchmarkOptions, folder: Path):
        self.config, self.options, self.folder = config, options, folder

    @property
    def settings(self) -> dict[str, Any]:
        """What every score of this benchmark depends on, as plain values."""
        return {
            "samples": self.config.samples,
            "sampling": asdict(self.config.sampling),
            "classifiers": list(self.config.classifiers),
            "protocol": self.config.protocol.to_dict(),
            "train": dict(self.train_node),
            "test": dict(self.test_node),
        }

    @property
    def train_node(self) -> Mapping[str, Any]:
        """The node of the private records; in a rehearsal, of the public records in their place."""
        if self.options.rehearse:
            return self.config.stand_in("train")
        return to_plain(section_at(load_config([self.config.run]), "data.params.train", self.config.run))

    @property
    def test_node(self) -> Mapping[str, Any]:
        """The real test set; in a rehearsal, held-out records of the other set."""
        return self.config.stand_in("test") if self.options.rehearse else self.config.test

    @cached_property
    def test(self) -> SampleSet:
        """The real test images."""
        return collect(instantiate_from_config(self.test_node), progress=False)

    @cached_property
    def records(self) -> SampleSet:
        """The private records as images, for baselines that train on them."""
        return collect(instantiate_from_config(self.train_node), progress=False)

    def write_overlay(self, folder: Path, *overlays: Mapping[str, Any]) -> Path:
        """Write the configuration of a run on top of the run's file: the data in the private set's place, ``overlays``.

        Raises UserError when the file is there with other settings.
        """
        base = {"base": str(self.config.run), "data": {"params": {"train": dict(self.train_node)}}}
        above: Any = OmegaConf.create(base)
        for overlay in overlays:
            above = OmegaConf.merge(above, OmegaConf.create(dict(overlay)))
        path = folder / "overlay.yaml"
        text = OmegaConf.to_yaml(above)
        if path.is_file() and path.read_text() != text:
            raise UserError(f"{path}: an earlier run had other settings; name another --output folder")
        write_text(path, text)
        return path

    def sample(self, checkpoint: Path | str, output: Path) -> None:
        """Draw labelled samples, class by class; continues an earlier process that was stopped."""
        config = self.config
        if not output.is_file():
            plan = SamplePlan(config.samples, config.sampling, classes=range(config.classes))
            write_samples(output, ModelSource(config.run, checkpoint), plan, device())

    def score(self, samples: SampleSet) -> Result:
        """Accuracy on the test images of classifiers trained on ``samples``: their mean, and each one if several."""
        names, protocol = self.config.classifiers, self.config.protocol
        summaries = downstream_accuracy(samples, self.test, classifiers=names, protocol=protocol, device=device())
        found = {summary.model: summary.mean for summary in summaries}
        every = {"classifiers": found} if len(found) > 1 else {}
        return {"accuracies": [statistics.fmean(found.values())], **every}

    def score_file(self, path: Path) -> Result:
        """The score of a sample file."""
        return self.score(SampleSet.load(path, need_labels=True))

    def score_private_labels(self, path: Path, run: Path, warm_up: Mapping[str, Any]) -> Result:
        """The score of a sample file whose labels come from the private classifier of the run's folder ``run``."""
        samples = SampleSet.load(path, need_labels=True)
        labelled = labelled_by(samples, run / "statistics.ckpt", warm_up["classifier"])
        assert samples.labels is not None and labelled.labels is not None
        agreement = (samples.labels == labelled.labels).float().mean().item()
        often = labelled.labels.bincount(minlength=self.config.classes) > 1  # one image cannot be split for training
        labelled = labelled.subset(often[labelled.labels])
        return {**self.score(labelled), "agreement": agreement}

    @property
    def sampling_seconds(self) -> float:
        """Estimated seconds for one sample file."""
        return self.config.samples / SAMPLES_A_SECOND

    @property
    def scoring_seconds(self) -> float:
        """Estimated seconds for the classifiers of one row."""
        return self.config.samples * self.config.protocol.epochs * len(self.config.classifiers) / CLASSIFIER

    def stages(self) -> list[Stage]:
        """The stages of baselines that need no private run."""
        wanted, found = self.options.baselines, []
        if "real" in wanted:
            found.append(Stage("real", "classifier on real images", self.folder, self.scoring_seconds, self._real))
        if "public" in wanted:
            seconds = self.sampling_seconds + self.scoring_seconds
            found.append(Stage("public", "the public model alone", self.folder, seconds, self._public))
        return found

    def _real(self) -> Result:
        return self.score(self.records)

    def _public(self) -> Result:
        checkpoint = section_at(load_config([self.config.run]), "model.params", self.config.run).ckpt_path
        self.sample(checkpoint, self.folder / "public.pt")
        return self.score_file(self.folder / "public.pt")
