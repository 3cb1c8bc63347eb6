"""The quickstart's report: accuracy of a classifier trained on private samples, beside four baselines."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ldm.errors import UserError
from ldm.evaluation.classifiers.downstream import hold_out, train_classifier
from ldm.evaluation.classifiers.protocols import ClassifierProtocol
from ldm.evaluation.features.digits import DigitFeatures
from ldm.evaluation.inputs.sources import collect, sample_batches
from ldm.evaluation.metrics.statistics import FeatureStatistics, compare, compute_statistics
from ldm.files import write_atomic, write_text
from ldm.inference import SamplingOptions, labels_for, load_model, sample_images
from ldm.numbers import rounded_up
from ldm.privacy.card import ReleaseCard
from ldm.reports.privacy_summary import budget_of, spending_curve
from ldm.reports.run_metrics import read_metric
from ldm.samples import SampleSet, save_grid
from ldm.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)

DIGITS = tuple(range(10))


@dataclass(frozen=True)
class ReportOptions:
    """Settings of every row of the table: number of samples, classifier epochs, and the seeds of both."""

    samples: int = 1000
    epochs: int = 15
    batch_size: int = 50  # with 1,000 images, larger batches leave the classifier half trained
    lr: float = 1e-3
    seeds: tuple[int, ...] = (0, 1, 2)
    sampling: SamplingOptions = field(default_factory=lambda: SamplingOptions(steps=20, guidance=2.0, batch_size=250))


@dataclass(frozen=True)
class Row:
    """One row of the table: accuracies on real held-out digits (one per seed), and the stand-in Fréchet distance."""

    name: str
    accuracies: tuple[float, ...]
    distance: float | None

    @property
    def mean(self) -> float:
        """Mean accuracy, 0 to 1."""
        return statistics.fmean(self.accuracies)

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds; 0 for one seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


class Scorer:
    """Measures sample sets against real held-out digits, always the same way.

    ``public`` are the labelled public images from which the feature network of the stand-in distance is trained.
    """

    def __init__(
        self, options: ReportOptions, public: SampleSet, real: SampleSet, held_out: SampleSet, device: torch.device
    ):
        self.options = options
        self.held_out = held_out
        self.device = device
        self.features = DigitFeatures.fit(public, epochs=4, device=device)
        self.reference = self.statistics(real, "real")

    def statistics(self, samples: SampleSet, source: str) -> FeatureStatistics:
        """Mean and covariance of the samples' features."""
        return compute_statistics(sample_batches(samples, progress=False), self.features, source=source)

    def accuracy(self, samples: SampleSet, seed: int) -> float:
        """Accuracy on real held-out digits of a CNN trained on ``samples``; its epoch is chosen on held-out samples."""
        train, validation = hold_out(samples, seed=seed)
        protocol = ClassifierProtocol().changed(
            epochs=self.options.epochs,
            batch_size=self.options.batch_size,
            lr=self.options.lr,
            augment=("jitter",),
        )
        result = train_classifier("cnn", train, validation, self.held_out, protocol, seed=seed, device=self.device)
        return result.accuracy

    def row(self, name: str, draw: Callable[[int], SampleSet]) -> tuple[Row, SampleSet]:
        """Measure one source of samples over all seeds; also returns the first seed's samples."""
        sets = [draw(seed) for seed in self.options.seeds]
        accuracies = tuple(self.accuracy(samples, seed) for samples, seed in zip(sets, self.options.seeds, strict=True))
        row = Row(name, accuracies, compare(self.statistics(sets[0], name), self.reference))
        logger.info("%s: %.1f %% +- %.1f, distance %.1f", name, 100 * row.mean, 100 * row.deviation, row.distance)
        return row, sets[0]


def model_samples(
    config: str, checkpoint: Path, options: ReportOptions, device: torch.device
) -> Callable[[int], SampleSet]:
    """A source of labelled digits from a model, by seed."""
    model = load_model(config, checkpoint, device)

    def draw(seed: int) -> SampleSet:
        labels = labels_for(DIGITS, options.samples)
        return SampleSet(sample_images(model, options.samples, replace(options.sampling, seed=seed), labels), labels)

    return draw


def fixed_images(images: SampleSet, count: int) -> Callable[[int], SampleSet]:
    """A source of ``count`` images of a set, chosen at random by seed."""

    def draw(seed: int) -> SampleSet:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        return images.subset(order[:count])

    return draw


def last_checkpoint(run: str | Path) -> Path:
    """The final checkpoint of a run directory. Raises UserError when there is none."""
    path = RunDirectory(Path(run)).last_checkpoint
    if not path.is_file():
        raise UserError(f"{run}: holds no checkpoints/last.ckpt; has its training finished?")
    return path


def report(
    config: str,
    public_checkpoint: str,
    private_run: str,
    plain_run: str,
    output: str | Path,
    *,
    public: Any,
    real: Any,
    held_out: Any,
    options: ReportOptions,
    device: torch.device,
) -> str:
    """Measure the private model and its baselines, write ``results.json``, images and curves; returns the table.

    ``public``, ``real``, ``held_out``: data sets of public images, private training digits and real test digits.
    """
    folder = Path(output)
    images, digits = collect(public, progress=False), collect(real, progress=False)
    scorer = Scorer(options, images, digits, collect(held_out, progress=False), device)
    epsilon, delta = budget_of(private_run)
    models = {
        "public model's samples": Path(public_checkpoint),
        f"private fine-tuning, epsilon {rounded_up(epsilon, 3)}": last_checkpoint(private_run),
        "same fine-tuning without privacy": last_checkpoint(plain_run),
    }
    rows, drawn = [], []
    for name, checkpoint in models.items():
        row, samples = scorer.row(name, model_samples(config, checkpoint, options, device))
        rows.append(row)
        drawn.append(samples)
    rows.append(scorer.row("public images", fixed_images(images, options.samples))[0])
    real_row, _ = scorer.row("real private digits", fixed_images(digits, options.samples))
    rows.append(replace(real_row, distance=None))  # the real digits are the reference of the distance
    drawn[1].save(folder / "private_samples.pt")
    save_grid(comparison(digits, drawn[0], drawn[1]), folder / "samples.png", columns=20)
    draw_curves(Path(private_run), Path(plain_run), folder / "curves.png")
    text = table(rows, epsilon, delta)
    content = {
        "epsilon": epsilon,
        "delta": delta,
        "rows": [{"name": row.name, "accuracies": row.accuracies, "distance": row.distance} for row in rows],
    }
    write_text(folder / "results.json", json.dumps(content, indent=2))
    write_text(folder / "results.txt", text + "\n")
    return text


def comparison(real: SampleSet, public: SampleSet, private: SampleSet, each: int = 2) -> torch.Tensor:
    """Images for a grid of 20 columns: ``each`` lines of real digits, the public model's, the private model's."""
    lines: list[torch.Tensor] = []
    for samples in (real, public, private):
        by_class = [samples.images[samples.labels == digit][: 2 * each] for digit in DIGITS]
        lines.extend(torch.cat([images[2 * line : 2 * line + 2] for images in by_class]) for line in range(each))
    return torch.cat(lines)


def table(rows: Sequence[Row], epsilon: float, delta: float) -> str:
    """The printed table."""
    lines = [
        f"privacy spent: epsilon {rounded_up(epsilon)} at delta {rounded_up(delta, 6)}",
        "accuracy on real held-out digits of a CNN trained on ... (mean and deviation over seeds)",
        f"{'trained on':38} {'accuracy':>16} {'digits-cnn distance':>20}",
    ]
    for row in rows:
        distance = "-" if row.distance is None else f"{row.distance:.1f}"
        lines.append(f"{row.name:38} {100 * row.mean:8.1f} % +- {100 * row.deviation:3.1f} {distance:>20}")
    lines.append("digits-cnn is a stand-in for Inception features; its distances are not FID.")
    return "\n".join(lines)


def draw_curves(private_run: Path, plain_run: Path, path: Path) -> None:
    """Epsilon of the private run by step, and the loss of the non-private run (a private loss is not published)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*_columns(spending_curve(ReleaseCard.read(private_run))))
    left.set(title="privacy spent", xlabel="step", ylabel="epsilon", ylim=(0, None))
    right.plot(*_columns(read_metric(plain_run, "train/loss_step")), color="tab:orange")
    right.set(title="loss of the run without privacy", xlabel="step", ylabel="loss")
    write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]
