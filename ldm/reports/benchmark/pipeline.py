"""The stages of a benchmark: private run, samples, classifier, and the baselines of the row."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ldm.config import instantiate_from_config, load_config, to_plain
from ldm.errors import UserError
from ldm.evaluation.classifiers.downstream import downstream_accuracy
from ldm.evaluation.inputs.sources import collect
from ldm.files import write_text
from ldm.inference import write_samples
from ldm.privacy.card import ReleaseCard
from ldm.reports.benchmark.config import BenchmarkConfig, delta_for, require_files, statistics_section
from ldm.reports.benchmark.direct import direct_accuracy
from ldm.reports.benchmark.linear import linear_accuracy, linear_section
from ldm.reports.benchmark.machine import device, trainer_flags
from ldm.reports.benchmark.settings import keep_settings
from ldm.reports.benchmark.stages import Result, Stage, run_stages
from ldm.reports.benchmark.statistics_only import draws_of, labelled_by, release_statistics, train_on_release
from ldm.samples import SampleSet
from ldm.training import RunOptions, train

logger = logging.getLogger(__name__)

#: Rates on one idle core in images or records per second, for the first estimate of the remaining time.
SAMPLES_A_SECOND, CLASSIFIER, PRIVATE, PLAIN, ENCODED = 110.0, 2000.0, 900.0, 1200.0, 900.0

#: Baselines that can be measured beside the private rows.
BASELINES = ("real", "public", "plain", "direct", "linear", "statistics", "warm")
#: Those that need no private run.
ALONE = ("real", "public", "plain", "direct", "linear")


@dataclass(frozen=True)
class BenchmarkOptions:
    """Options of the command line. ``baselines``: those of `BASELINES` to measure beside the private rows."""

    config: str
    epsilons: tuple[str, ...]
    output: str = "logs/benchmark"
    repeat: int = 1
    quick: bool = False
    rehearse: bool = False
    statistics_only: bool = False
    draws_only: bool = False
    baselines: tuple[str, ...] = BASELINES
    only_baselines: bool = False


def run_benchmark(options: BenchmarkOptions) -> Path:
    """Run every unfinished stage; returns the folder with the results. Raises UserError.

    Folders in a benchmark file are relative to the working directory, as for every command.
    """
    config = BenchmarkConfig.read(options.config, options.quick)
    if options.repeat < 1:
        raise UserError(f"--repeat {options.repeat}: give 1 or more private runs")
    require_files(config)
    if options.rehearse:
        config.stand_in("train"), config.stand_in("test")
    unknown = [name for name in options.baselines if name not in BASELINES]
    if unknown:
        raise UserError(f"--baselines {unknown[0]}: unknown; choose from {', '.join(BASELINES)}")
    kind = ("-quick" if options.quick else "") + ("-rehearsal" if options.rehearse else "")
    folder = Path(options.output) / f"{config.path.stem}{kind}"
    shared = Shared(config, options, folder / "shared")
    groups: list[Shared | StatisticsRun | PrivateRun] = []
    for epsilon in options.epsilons:
        for number in range(options.repeat):
            place = folder / f"eps{epsilon}"
            if options.statistics_only or options.draws_only:
                groups.append(StatisticsRun(config, options, shared, epsilon, place / f"stats{number}"))
            else:
                groups.append(PrivateRun(config, options, shared, epsilon, place / f"run{number}", number == 0))
    groups.append(shared)
    stages = [stage for group in groups for stage in group.stages()]
    if options.only_baselines:
        stages = [stage for stage in stages if stage.key in ALONE]
    for group in groups:
        keep_settings(group.folder, group.settings)
    run_stages(stages)
    return folder


class Shared:
    """The shared part of all runs of a data set: the data, and baselines that do not depend on epsilon."""

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
        return to_plain(load_config([self.config.run]).data.params.train)

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

    def run_files(self, folder: Path, *overlays: Mapping[str, Any]) -> list[str]:
        """A file on top of the run's: the data in the place of the private set, and ``overlays``."""
        base = {"base": str(self.config.run), "data": {"params": {"train": dict(self.train_node)}}}
        above: Any = OmegaConf.create(base)
        for overlay in overlays:
            above = OmegaConf.merge(above, OmegaConf.create(dict(overlay)))
        path = folder / "overlay.yaml"
        text = OmegaConf.to_yaml(above)
        if path.is_file() and path.read_text() != text:
            raise UserError(f"{path}: an earlier run had other settings; name another --output folder")
        write_text(path, text)
        return [str(path)]

    def sample(self, checkpoint: Path | str, output: Path, count: int | None = None) -> None:
        """Draw labelled samples, class by class; continues an earlier process that was stopped."""
        wanted = self.config.samples if count is None else count
        classes = range(self.config.classes)
        if not output.is_file():
            write_samples(
                output, self.config.run, checkpoint, wanted, self.config.sampling, classes=classes, device=device()
            )

    def score(self, samples: SampleSet) -> Result:
        """Accuracy on the test images of classifiers trained on ``samples``: their mean, and each one if several."""
        names, protocol = self.config.classifiers, self.config.protocol
        summaries = downstream_accuracy(samples, self.test, classifiers=names, protocol=protocol, device=device())
        found = {summary.model: summary.mean for summary in summaries}
        every = {"classifiers": found} if len(found) > 1 else {}
        return {"accuracies": [statistics.fmean(found.values())], **every}

    def scored(self, path: Path) -> Result:
        """The score of a sample file."""
        return self.score(SampleSet.load(path, need_labels=True))

    def scored_labels(self, path: Path, run: Path, warm_up: Mapping[str, Any]) -> Result:
        """The score of a sample file whose labels come from the private classifier of the run's folder ``run``."""
        samples = SampleSet.load(path, need_labels=True)
        labelled = labelled_by(samples, run / "statistics.ckpt", warm_up["classifier"])
        assert samples.labels is not None and labelled.labels is not None
        agreement = (samples.labels == labelled.labels).float().mean().item()
        often = labelled.labels.bincount(minlength=self.config.classes) > 1  # one image cannot be split for training
        labelled = labelled.subset(often[labelled.labels])
        return {**self.score(labelled), "agreement": agreement}

    @property
    def scoring_seconds(self) -> float:
        """Estimated seconds for the classifiers of one row."""
        return self.config.samples * self.config.protocol.epochs * len(self.config.classifiers) / CLASSIFIER

    def stages(self) -> list[Stage]:
        """The stages of baselines that need no private run."""
        wanted, sampling = self.options.baselines, self.config.samples / SAMPLES_A_SECOND
        found = []
        if "real" in wanted:
            found.append(Stage("real", "classifier on real images", self.folder, self.scoring_seconds, self._real))
        if "public" in wanted:
            seconds = sampling + self.scoring_seconds
            found.append(Stage("public", "the public model alone", self.folder, seconds, self._public))
        return found

    def _real(self) -> Result:
        return self.score(self.records)

    def _public(self) -> Result:
        checkpoint = load_config([self.config.run]).model.params.ckpt_path
        self.sample(checkpoint, self.folder / "public.pt")
        return self.scored(self.folder / "public.pt")


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
        run = to_plain(
            OmegaConf.merge(load_config([self.config.run]), OmegaConf.create(self.config.budget(self.epsilon)))
        )
        dp, trainer = run["model"]["params"]["dp_config"], run["lightning"]["trainer"]
        rows = trainer.get("max_steps", 0) * run["data"]["params"]["batch_size"]
        warm = ((dp.get("warm_up") or {}).get("training") or {"steps": 0}).get("steps", 0) * 256
        training = rows * dp.get("noise_multiplicity", 1) / PRIVATE + warm / PLAIN + 60_000 / ENCODED
        name, scoring = f"epsilon {self.epsilon}, {self.folder.name}", self.shared.scoring_seconds
        sampling = self.config.samples / SAMPLES_A_SECOND
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
        train_or_resume(self.folder / "runs", self.shared.run_files(self.folder, self._account(), self._budget()))
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

    def _sample(self) -> Result:
        self.shared.sample(self.run_dir / "checkpoints" / "last.ckpt", self.folder / "samples.pt")
        return {"count": self.config.samples}

    @cached_property
    def warm_up(self) -> Mapping[str, Any]:
        """The section ``dp_config.warm_up`` of the run at this epsilon."""
        run = OmegaConf.merge(load_config([self.config.run]), OmegaConf.create(dict(self._budget())))
        return to_plain(run.model.params.dp_config).get("warm_up") or {}

    def _score(self) -> Result:
        return self.shared.scored(self.folder / "samples.pt")

    def _score_labels(self) -> Result:
        return self.shared.scored_labels(self.folder / "samples.pt", self.run_dir, self.warm_up)

    def _statistics(self) -> Result:
        samples = draws_of(self.run_dir, self.config.run, self._budget(), self.config.samples)
        return self.shared.score(samples)

    def _warm(self) -> Result:
        self.shared.sample(self.run_dir / "warm_up.ckpt", self.folder / "warm.pt")
        return self.shared.scored(self.folder / "warm.pt")

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
        train_or_resume(folder / "runs", self.shared.run_files(folder, self._account(), self._budget(), off))
        self.shared.sample(latest_run(folder / "runs") / "checkpoints" / "last.ckpt", folder / "samples.pt")
        return self.shared.scored(folder / "samples.pt")


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
        sampling = self.config.samples / SAMPLES_A_SECOND
        found = [
            Stage("release", f"{name}: encoding and release", self.folder, 60_000 / ENCODED, self._release),
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
        return self.shared.scored_labels(self.folder / "draws.pt", self.folder / "run", self.warm_up)

    def _model(self) -> Result:
        self.shared.sample(self.folder / "run" / "warm_up.ckpt", self.folder / "samples.pt")
        return self.shared.scored(self.folder / "samples.pt")


def latest_run(folder: Path) -> Path:
    """The only run directory in ``folder``, or the latest. Raises UserError when there is none."""
    runs = sorted(path for path in folder.glob("*") if path.is_dir())
    if not runs:
        raise UserError(f"{folder}: holds no run")
    return runs[-1]


def train_or_resume(folder: Path, base: list[str]) -> None:
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
        train(RunOptions(base=base, logdir=str(folder), name="run", **common))
