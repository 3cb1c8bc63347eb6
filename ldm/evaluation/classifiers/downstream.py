"""Downstream accuracy: train a classifier on generated images, choose its epoch on held-out generated images,
and score it once on real ones. Published protocols with another selection rule are available by name and marked."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.evaluation.classifiers.networks import DISPLAY_NAMES, Preparation, classifier_name
from ldm.evaluation.classifiers.protocols import (
    BEST_TEST,
    HELD_OUT,
    LAST,
    REAL_HELD_OUT,
    SELECTIONS,
    ClassifierProtocol,
    protocol_named,
)
from ldm.evaluation.classifiers.training import ClassifierTrainer, EpochScore, labels_of, score_classifier
from ldm.evaluation.processes import ALONE, Processes
from ldm.samples import SampleSet

logger = logging.getLogger(__name__)

Labelled = SampleSet | tuple[Tensor, Tensor]

NO_REAL = (
    "protocol {} chooses the epoch on real images outside the test set; name them with --val of "
    "scripts/dpdm_downstreaming_classifier_mnist.py"
)


@dataclass(frozen=True)
class DownstreamResult:
    """One trained classifier.

    accuracy (real images, 0-1) is that of ``best_epoch`` (from 1), chosen by the rule ``selection``.
    uses_test_for_selection: real test images took part in the choice. validation_accuracy: accuracy of that epoch on
    the images that chose it (None for a protocol without a choice).
    average_accuracy and average_epoch are those of the averaged weights, where the protocol has them.
    step_losses: the training loss of every step, (epochs, steps) nats; left out of `to_dict`.
    """

    model: str
    accuracy: float
    validation_accuracy: float | None
    best_epoch: int
    epochs: int
    seed: int
    curve: tuple[EpochScore, ...]
    protocol: str = HELD_OUT
    selection: str = HELD_OUT
    uses_test_for_selection: bool = False
    average_accuracy: float | None = None
    average_epoch: int | None = None
    step_losses: tuple[tuple[float, ...], ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the file's key ``honest`` is the opposite of ``uses_test_for_selection``."""
        return _with_honest({name: value for name, value in asdict(self).items() if name != "step_losses"})


@dataclass(frozen=True)
class SeedSummary:
    """Accuracy of one classifier on real images over seeds: mean and sample standard deviation (0 for a single
    seed), both 0-1; the protocol, and whether real test images took part in the choice of the epoch."""

    model: str
    mean: float
    deviation: float
    results: tuple[DownstreamResult, ...]
    protocol: str = HELD_OUT
    selection: str = HELD_OUT
    uses_test_for_selection: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``note`` is the selection rule in words."""
        content = _with_honest({name: value for name, value in vars(self).items() if name != "results"})
        results = [result.to_dict() for result in self.results]
        return {**content, "note": SELECTIONS[self.selection], "results": results}


def downstream_accuracy(
    train: Labelled,
    test: Labelled,
    *,
    held_out: Labelled | None = None,
    classifiers: Sequence[str] = ("logreg", "mlp", "cnn"),
    protocol: str | ClassifierProtocol = HELD_OUT,
    seeds: Sequence[int] = (0,),
    device: torch.device | str = "cpu",
    amp: bool = False,
    num_classes: int | None = None,
    processes: Processes = ALONE,
) -> list[SeedSummary]:
    """Accuracy on ``test`` (real images) of classifiers trained on ``train`` (samples), one result per classifier.

    Images are sample sets, or (images (N, 1 or 3, H, W) in [-1, 1], labels (N,)). A protocol that chooses the epoch
    on held-out samples takes ``held_out``, or one sixth of ``train``; one that chooses on held-out real images takes
    those from ``held_out``; the others train on all of ``train``. Every seed draws new initial weights, batch orders
    and augmentation. amp computes in bfloat16 where that is safe. Several ``processes`` share out the trainings, one a
    classifier and seed; the results are the same.
    Raises UserError for unknown names, missing labels, images of two sizes, or a training that diverges.
    """
    chosen = protocol_named(protocol)
    names = [classifier_name(name) for name in classifiers]
    if not names or not seeds:
        raise UserError(f"{len(names)} classifiers and {len(seeds)} seeds given; at least one of each is needed")
    train, test = _sample_set(train), _sample_set(test)
    validation = None if held_out is None else _sample_set(held_out)
    train, validation = _choosing_images(chosen, train, validation)
    jobs = [
        partial(
            train_classifier,
            name,
            train,
            validation,
            test,
            chosen,
            seed=seed,
            device=device,
            amp=amp,
            num_classes=num_classes,
            progress=processes.first,
        )
        for name in names
        for seed in seeds
    ]
    results = processes.share([partial(_said, job) for job in jobs])
    return [_summary(results[start : start + len(seeds)]) for start in range(0, len(results), len(seeds))]


def _said(train: Callable[[], DownstreamResult]) -> DownstreamResult:
    """The result of a training, with a line in the log."""
    result = train()
    logger.info(
        "%s, seed %d: %.2f %% on real images (epoch %d of %d; %s)",
        DISPLAY_NAMES[result.model],
        result.seed,
        100 * result.accuracy,
        result.best_epoch,
        result.epochs,
        SELECTIONS[result.selection],
    )
    return result


def _choosing_images(
    protocol: ClassifierProtocol, train: SampleSet, held_out: SampleSet | None
) -> tuple[SampleSet, SampleSet | None]:
    """The images that are trained on, and those that choose the epoch by the protocol's rule; warns of unsafe rules."""
    if protocol.selection in (REAL_HELD_OUT, BEST_TEST):
        logger.warning("protocol %s: %s (%s)", protocol.name, protocol.note, protocol.source)
    if protocol.selection == REAL_HELD_OUT:
        _require(held_out, protocol)
        return train, held_out
    if protocol.selection == HELD_OUT:
        return hold_out(train) if held_out is None else (train, held_out)
    if held_out is not None:
        logger.warning("protocol %s does not use the held-out samples", protocol.name)
    return train, None


def _require(chosen_on: SampleSet | None, protocol: ClassifierProtocol) -> None:
    """Raise UserError when a protocol chooses the epoch on further images and none are given."""
    if chosen_on is None and protocol.selection == REAL_HELD_OUT:
        raise UserError(NO_REAL.format(protocol.name))
    if chosen_on is None and protocol.selection == HELD_OUT:
        raise UserError(f"protocol {protocol.name} chooses the epoch on held-out samples, and none were given")


def _summary(results: Sequence[DownstreamResult]) -> SeedSummary:
    accuracies = [result.accuracy for result in results]
    deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    first = results[0]
    mean = statistics.fmean(accuracies)
    return SeedSummary(
        model=first.model,
        mean=mean,
        deviation=deviation,
        results=tuple(results),
        protocol=first.protocol,
        selection=first.selection,
        uses_test_for_selection=first.uses_test_for_selection,
    )


def train_classifier(
    model_name: str,
    train: SampleSet,
    validation: SampleSet | None,
    test: SampleSet,
    protocol: str | ClassifierProtocol = HELD_OUT,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    amp: bool = False,
    num_classes: int | None = None,
    progress: bool = True,
) -> DownstreamResult:
    """Train one classifier on ``train`` and score the epoch that the protocol chooses on ``test`` (real).

    By default ``validation`` (held-out samples) chooses the epoch, and ``test`` is used only afterwards, because the
    accuracy of an epoch chosen on test images is not an accuracy on unseen images. Best means highest accuracy, then
    lowest loss. Raises UserError for missing labels, settings out of range, or a training that diverges.
    """
    chosen = protocol_named(protocol)
    _require(validation, chosen)
    watched = {HELD_OUT: validation, REAL_HELD_OUT: validation, LAST: None, BEST_TEST: test}[chosen.selection]
    trainer = ClassifierTrainer(
        model_name,
        train,
        watched,
        chosen,
        seed=seed,
        device=device,
        amp=amp,
        num_classes=num_classes,
        progress=progress,
    )
    plain = _Choice(trainer.network)
    averaged = _Choice(trainer.average.module) if trainer.average is not None else None
    curve: list[EpochScore] = []
    for score in trainer.run():
        curve.append(score)
        plain.consider(len(curve), score.validation_accuracy, score.validation_loss)
        if averaged is not None:
            averaged.consider(len(curve), score.average_accuracy, score.average_loss)
    accuracy = plain.score(test, trainer.preparation, device)
    average = None if averaged is None else averaged.score(test, trainer.preparation, device)
    reported = averaged if chosen.report_average and averaged is not None else plain
    return DownstreamResult(
        model=trainer.name,
        accuracy=accuracy if reported is plain or average is None else average,
        validation_accuracy=reported.accuracy,
        best_epoch=reported.epoch,
        epochs=chosen.epochs,
        seed=seed,
        curve=tuple(curve),
        protocol=chosen.name,
        selection=chosen.selection,
        uses_test_for_selection=chosen.uses_test_for_selection,
        average_accuracy=average,
        average_epoch=None if averaged is None else averaged.epoch,
        step_losses=trainer.step_losses(),
    )


def fit_classifier(
    model_name: str,
    train: SampleSet,
    protocol: str | ClassifierProtocol = HELD_OUT,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    amp: bool = False,
) -> nn.Module:
    """Train for the protocol's epochs with nothing held out; returns the network in eval mode."""
    trainer = ClassifierTrainer(model_name, train, None, protocol_named(protocol), seed=seed, device=device, amp=amp)
    for _ in trainer.run():
        pass
    return trainer.network.eval()


def hold_out(samples: SampleSet, fraction: float = 1 / 6, seed: int = 0) -> tuple[SampleSet, SampleSet]:
    """Split labelled samples at random into (training, held-out), class by class so that both have every class.

    The default is the ratio 5,000 : 1,000 per class of the original evaluation. Raises UserError when a class is too
    small to give one image to each side.
    """
    if not 0 < fraction < 1:
        raise UserError(f"the held-out share is {fraction}; expected a number between 0 and 1")
    labels = labels_of(samples, "the training samples")
    generator = torch.Generator().manual_seed(seed)
    kept, held = [], []
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        if len(members) < 2:
            raise UserError(
                f"class {int(label)} has a single image, too few to hold one out; "
                "make more samples or give held-out samples with --val"
            )
        members = members[torch.randperm(len(members), generator=generator)]
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        held.append(members[:count])
        kept.append(members[count:])
    return samples.subset(torch.cat(kept)), samples.subset(torch.cat(held))


def format_accuracies(summaries: Sequence[SeedSummary]) -> str:
    """A short table: accuracy on real images in percent, its deviation over seeds, and a warning when test images
    chose the epoch. Several classifiers have a last line with their mean and the best of them."""
    lines = []
    for summary in summaries:
        spread = f" +- {100 * summary.deviation:.2f}" if len(summary.results) > 1 else ""
        marked = summary.uses_test_for_selection or summary.selection == REAL_HELD_OUT
        mark = f" ({SELECTIONS[summary.selection]})" if marked else ""
        lines.append(f"{DISPLAY_NAMES[summary.model]}: {100 * summary.mean:.2f}{spread} %{mark}")
    if len(summaries) > 1:
        means = [100 * summary.mean for summary in summaries]
        lines.append(
            f"mean of {len(means)} classifiers: {statistics.fmean(means):.2f} %; best of them: {max(means):.2f} % "
            "(the test images chose which)"
        )
    return "\n".join(lines)


class _Choice:
    """The best weights so far of a network in training; the last weights when no score ranks the epochs."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.epoch = network, 0
        self.accuracy: float | None = None
        self._rank: tuple[float, float] | None = None
        self._state: dict[str, Tensor] | None = None

    def consider(self, epoch: int, accuracy: float | None, loss: float | None) -> None:
        if accuracy is None or loss is None:
            if self._rank is None:
                self.epoch = epoch
            return
        rank = (accuracy, -loss)
        if self._rank is None or rank > self._rank:
            self._rank, self.epoch, self.accuracy = rank, epoch, accuracy
            self._state = {name: value.detach().clone() for name, value in self.network.state_dict().items()}

    def score(self, test: SampleSet, preparation: Preparation, device: torch.device | str) -> float:
        """Accuracy of the chosen weights on the real test images."""
        if self._state is not None:
            self.network.load_state_dict(self._state)
        return score_classifier(self.network, test, preparation=preparation, device=device)[0]


def _with_honest(content: dict[str, Any]) -> dict[str, Any]:
    uses_test = content.pop("uses_test_for_selection")
    return {**content, "honest": not uses_test}


def _sample_set(labelled: Labelled) -> SampleSet:
    if isinstance(labelled, tuple):
        images, labels = labelled
        return SampleSet(images, labels)
    return labelled
