"""Downstream accuracy: train a classifier on generated pictures, choose its epoch on held-out generated pictures,
and score it once on real ones."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ldm.errors import UserError
from ldm.evaluation.classifiers import DISPLAY_NAMES, build_classifier, prepare
from ldm.samples import SampleSet

logger = logging.getLogger(__name__)

SCORING_BATCH = 1000
MAX_SHIFT, MAX_ROTATION = 2 / 32, 0.17  # of the picture's size, radians (about 10 degrees)


@dataclass(frozen=True)
class EpochScore:
    """One epoch: mean training loss (nats), accuracy and mean loss on the held-out samples."""

    loss: float
    validation_accuracy: float
    validation_loss: float


@dataclass(frozen=True)
class DownstreamResult:
    """One trained classifier. accuracy (real pictures, 0-1) was measured once, at best_epoch (from 1), which the
    held-out samples chose; validation_accuracy is theirs."""

    model: str
    accuracy: float
    validation_accuracy: float
    best_epoch: int
    epochs: int
    seed: int
    curve: tuple[EpochScore, ...]


@dataclass(frozen=True)
class SeedSummary:
    """Accuracy on real pictures over seeds: mean and sample standard deviation (0 for a single seed), both 0-1."""

    model: str
    mean: float
    deviation: float
    results: tuple[DownstreamResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def train_classifier(
    model_name: str,
    train: SampleSet,
    validation: SampleSet,
    test: SampleSet,
    *,
    epochs: int = 50,
    batch_size: int = 128,
    lr: float = 3e-4,
    seed: int = 0,
    device: torch.device | str = "cpu",
    augment: bool = False,
    amp: bool = False,
) -> DownstreamResult:
    """Train on `train`, keep the epoch that is best on `validation` (held-out samples), score it on `test` (real).

    `test` is not looked at before the epoch is chosen: an accuracy that real test pictures picked is not an accuracy
    on unseen pictures. Best means highest accuracy, then lowest loss. Adam, cross-entropy; augment shifts and rotates
    training pictures a little, amp uses bfloat16. Raises UserError for missing labels or settings out of range.
    """
    trainer = _Trainer(
        model_name, train, validation, batch_size=batch_size, lr=lr, seed=seed, device=device, augment=augment, amp=amp
    )
    curve: list[EpochScore] = []
    best, best_state = 0, trainer.state()
    for score in trainer.run(epochs):
        curve.append(score)
        if len(curve) == 1 or _rank(score) > _rank(curve[best]):
            best, best_state = len(curve) - 1, trainer.state()
    trainer.network.load_state_dict(best_state)
    accuracy, _ = score_classifier(trainer.network, test, device=device)
    return DownstreamResult(model_name, accuracy, curve[best].validation_accuracy, best + 1, epochs, seed, tuple(curve))


def fit_classifier(
    model_name: str,
    train: SampleSet,
    *,
    epochs: int,
    batch_size: int = 128,
    lr: float = 3e-4,
    seed: int = 0,
    device: torch.device | str = "cpu",
    augment: bool = False,
    amp: bool = False,
) -> nn.Module:
    """Train for a fixed number of epochs with nothing held out; returns the network in eval mode."""
    trainer = _Trainer(
        model_name, train, None, batch_size=batch_size, lr=lr, seed=seed, device=device, augment=augment, amp=amp
    )
    for _ in trainer.run(epochs):
        pass
    return trainer.network.eval()


def score_classifier(
    network: nn.Module, samples: SampleSet, *, device: torch.device | str = "cpu"
) -> tuple[float, float]:
    """Accuracy (0-1) and mean cross-entropy (nats) of a classifier on labelled pictures.

    Labels the classifier has no output for count as wrong and are left out of the loss.
    """
    images, labels = samples.images, _labels(samples, "the test set")
    network.eval()
    correct, loss, counted = 0, 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(labels), SCORING_BATCH):
            target = labels[start : start + SCORING_BATCH].to(device)
            logits = network(prepare(images[start : start + SCORING_BATCH].to(device)))
            correct += int((logits.argmax(dim=1) == target).sum())
            known = target < logits.shape[1]
            loss += float(F.cross_entropy(logits[known], target[known], reduction="sum"))
            counted += int(known.sum())
    if counted < len(labels):
        logger.warning(
            "%d of %d pictures have a class that the training set lacks; they count as wrong",
            len(labels) - counted,
            len(labels),
        )
    return correct / len(labels), loss / max(counted, 1)


def score_samples(
    train: SampleSet,
    held_out: SampleSet,
    test: SampleSet,
    models: Sequence[str] = ("logreg", "mlp", "cnn"),
    *,
    seeds: Sequence[int] = (0,),
    epochs: int = 50,
    batch_size: int = 128,
    lr: float = 3e-4,
    device: torch.device | str = "cpu",
    augment: bool = False,
    amp: bool = False,
) -> dict[str, SeedSummary]:
    """Downstream accuracy of generated pictures for each classifier, over seeds (see `train_classifier`)."""
    return {
        model: evaluate_over_seeds(
            model,
            train,
            held_out,
            test,
            seeds=seeds,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            device=device,
            augment=augment,
            amp=amp,
        )
        for model in models
    }


def evaluate_over_seeds(
    model_name: str,
    train: SampleSet,
    validation: SampleSet,
    test: SampleSet,
    *,
    seeds: Sequence[int],
    epochs: int = 50,
    batch_size: int = 128,
    lr: float = 3e-4,
    device: torch.device | str = "cpu",
    augment: bool = False,
    amp: bool = False,
) -> SeedSummary:
    """Repeat `train_classifier` with other initial weights, batch orders and augmentations."""
    if not seeds:
        raise UserError("no seeds given; at least one is needed")
    results = []
    for seed in seeds:
        result = train_classifier(
            model_name,
            train,
            validation,
            test,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            seed=seed,
            device=device,
            augment=augment,
            amp=amp,
        )
        logger.info(
            "%s, seed %d: %.2f %% on real pictures (epoch %d of %d)",
            DISPLAY_NAMES[model_name],
            seed,
            100 * result.accuracy,
            result.best_epoch,
            epochs,
        )
        results.append(result)
    accuracies = [result.accuracy for result in results]
    deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return SeedSummary(model_name, statistics.fmean(accuracies), deviation, tuple(results))


def hold_out(samples: SampleSet, fraction: float = 1 / 6, seed: int = 0) -> tuple[SampleSet, SampleSet]:
    """Split labelled samples at random into (training, held-out), class by class so that both have every class.

    The default keeps the proportion 5,000 : 1,000 a class of the original evaluation. Raises UserError when a class is
    too small to give one picture to each side.
    """
    if not 0 < fraction < 1:
        raise UserError(f"the held-out share is {fraction}; expected a number between 0 and 1")
    labels = _labels(samples, "the training samples")
    generator = torch.Generator().manual_seed(seed)
    kept, held = [], []
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        if len(members) < 2:
            raise UserError(
                f"class {int(label)} has a single picture, too few to hold one out; "
                "make more samples or give held-out samples with --val"
            )
        members = members[torch.randperm(len(members), generator=generator)]
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        held.append(members[:count])
        kept.append(members[count:])
    return samples.subset(torch.cat(kept)), samples.subset(torch.cat(held))


def format_scores(scores: dict[str, SeedSummary]) -> str:
    """A short table: accuracy on real pictures in percent, and with several seeds its deviation."""
    lines = []
    for model, summary in scores.items():
        spread = f" +- {100 * summary.deviation:.2f}" if len(summary.results) > 1 else ""
        lines.append(f"{DISPLAY_NAMES[model]}: {100 * summary.mean:.2f}{spread} %")
    return "\n".join(lines)


class _Trainer:
    """A classifier, its prepared pictures and its optimizer; one call of `run` trains it epoch by epoch."""

    def __init__(
        self,
        model_name: str,
        train: SampleSet,
        validation: SampleSet | None,
        *,
        batch_size: int,
        lr: float,
        seed: int,
        device: torch.device | str,
        augment: bool,
        amp: bool,
    ) -> None:
        if batch_size < 1 or lr <= 0:
            raise UserError(f"batch size {batch_size} and learning rate {lr} must be positive")
        labels = _labels(train, "the training samples")
        self.name, self.validation = model_name, validation
        classes = int(labels.max()) + 1
        if validation is not None:
            classes = max(classes, int(_labels(validation, "the held-out samples").max()) + 1)
            if train.images.shape[-2:] != validation.images.shape[-2:]:
                raise UserError(
                    f"training samples are {tuple(train.images.shape[-2:])} and held-out samples "
                    f"{tuple(validation.images.shape[-2:])} pixels; use pictures of one size"
                )
        self.device, self.augment, self.amp, self.batch_size, self.seed = (
            torch.device(device),
            augment,
            amp,
            batch_size,
            seed,
        )
        self.images = prepare(train.images.to(self.device))
        self.labels = labels.to(self.device)
        with _seeded(seed, self.device):
            network = build_classifier(model_name, num_classes=classes)
        # channels-last is up to twice as fast for these small convolutions and changes no number beyond rounding
        self.network = network.to(memory_format=torch.channels_last).to(self.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=lr)

    def run(self, epochs: int) -> Iterator[EpochScore]:
        if epochs < 1:
            raise UserError(f"{epochs} epochs asked for; at least 1 is needed")
        bar = tqdm(range(epochs), desc=self.name, unit="epoch", leave=False, disable=None)  # shown on a terminal only
        for epoch in bar:
            with _seeded(self.seed * 100_003 + epoch + 1, self.device):
                loss = self._epoch()
            accuracy, validation_loss = (0.0, 0.0)
            if self.validation is not None:
                accuracy, validation_loss = score_classifier(self.network, self.validation, device=self.device)
            yield EpochScore(loss, accuracy, validation_loss)

    def _epoch(self) -> float:
        self.network.train()
        total = torch.zeros((), device=self.device)
        order = torch.randperm(len(self.labels)).to(self.device)
        for index in order.split(self.batch_size):
            images = _jitter(self.images[index]) if self.augment else self.images[index]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
                logits = self.network(images)
            loss = F.cross_entropy(logits.float(), self.labels[index])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total += loss.detach() * len(index)
        return float(total) / len(self.labels)

    def state(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.network.state_dict().items()}


def _rank(score: EpochScore) -> tuple[float, float]:
    return score.validation_accuracy, -score.validation_loss


def _labels(samples: SampleSet, which: str) -> Tensor:
    if samples.labels is None:
        raise UserError(f"{which} have no labels; sample from a class-conditional model to get them")
    if not len(samples.labels):
        raise UserError(f"{which} are empty")
    return samples.labels


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Fix initialisation, order, dropout and augmentation inside, and leave the caller's random state alone."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _jitter(images: Tensor) -> Tensor:
    """Rotate by up to 10 degrees and shift by up to 1/16 of the picture; what moves in is the picture's edge value."""
    count = len(images)
    angle = (torch.rand(count, device=images.device) * 2 - 1) * MAX_ROTATION
    shift = (torch.rand(count, 2, device=images.device) * 2 - 1) * 2 * MAX_SHIFT  # grid units: the picture is 2 wide
    cosine, sine = angle.cos(), angle.sin()
    theta = torch.stack([cosine, -sine, shift[:, 0], sine, cosine, shift[:, 1]], dim=1).view(count, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
