"""The training loop and the scoring of all classifiers."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from ldm.errors import UserError
from ldm.evaluation.classifiers.augment import AUGMENTATIONS
from ldm.evaluation.classifiers.networks import Preparation, build_classifier, classifier_name
from ldm.evaluation.classifiers.protocols import ClassifierProtocol
from ldm.samples import SampleSet

logger = logging.getLogger(__name__)

MEAN_CHUNK = 4096
Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True)
class EpochScore:
    """One epoch: mean training loss (nats); accuracy (0-1) and mean loss on the images that choose the epoch, of the
    trained and of the averaged weights. None for an epoch without a score."""

    loss: float
    validation_accuracy: float | None = None
    validation_loss: float | None = None
    average_accuracy: float | None = None
    average_loss: float | None = None


class ClassifierTrainer:
    """A classifier, its prepared images and its optimizer; one call of `run` trains it epoch by epoch.

    validation: the images that score every epoch, or None. The same seed gives the same weights on the same machine.
    """

    def __init__(
        self,
        model_name: str,
        train: SampleSet,
        validation: SampleSet | None,
        protocol: ClassifierProtocol,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        amp: bool = False,
        num_classes: int | None = None,
        progress: bool = True,
    ) -> None:
        self.name, self.validation, self.protocol = classifier_name(model_name), validation, protocol
        self.seed, self.device, self.amp, self.progress = seed, torch.device(device), amp, progress
        labels = labels_of(train, "the training samples")
        channels = 1 if protocol.grey else train.images.shape[1]
        self.preparation = Preparation(protocol.size, channels)
        # on the device and in classifier form once; 60,000 colour images of 32x32 take 0.7 GB
        self.images = self.preparation(train.images.to(self.device))
        if protocol.subtract_mean:
            parts = [part.sum(dim=0, dtype=torch.float64) for part in self.images.split(MEAN_CHUNK)]
            mean = (torch.stack(parts).sum(dim=0) / len(labels)).float()
            self.preparation = Preparation(protocol.size, channels, mean)
            self.images = (self.images - mean) / 2  # the preparation does the same to validation and test images
        self.labels = labels.to(self.device)
        with seeded(seed, self.device):
            network = build_classifier(
                self.name,
                in_channels=channels,
                size=protocol.size,
                num_classes=self._classes(labels, validation, num_classes, train),
                wrn_dropout=protocol.wrn_dropout,
                drop_maps=protocol.drop_maps,
            )
        # channels-last is up to twice as fast for these small convolutions; results differ by rounding only
        self.network = network.to(memory_format=torch.channels_last).to(self.device)
        self.average = averaged(self.network, protocol.ema_decay) if protocol.ema_decay else None
        self.optimizer = self._optimizer()
        self._losses: list[Tensor] = []

    def _classes(self, labels: Tensor, validation: SampleSet | None, num_classes: int | None, train: SampleSet) -> int:
        found = int(labels.max()) + 1
        if validation is not None and not self.protocol.uses_test_for_selection:
            found = max(found, int(labels_of(validation, "the held-out samples").max()) + 1)
            if train.images.shape[-2:] != validation.images.shape[-2:]:
                raise UserError(
                    f"training samples are {tuple(train.images.shape[-2:])} and held-out samples "
                    f"{tuple(validation.images.shape[-2:])} pixels; use images of one size"
                )
        if num_classes is not None and num_classes < found:
            raise UserError(f"the training samples have class {found - 1}; {num_classes} classes are too few")
        return num_classes or found

    def _optimizer(self) -> torch.optim.Optimizer:
        given = self.protocol
        if given.optimizer != "sgd":
            adam = torch.optim.AdamW if given.optimizer == "adamw" else torch.optim.Adam
            return adam(self.network.parameters(), lr=given.lr, weight_decay=given.weight_decay)
        return torch.optim.SGD(
            self.network.parameters(),
            lr=given.lr,
            momentum=0.9,
            nesterov=given.nesterov,
            weight_decay=given.weight_decay,
        )

    def _schedule(self) -> torch.optim.lr_scheduler.LRScheduler | None:
        """The schedule that is advanced after every step; None for a rate that is constant within an epoch."""
        given = self.protocol
        if given.one_cycle:
            # with Adam's betas as they are: its cycled momentum is a setting of SGD
            return torch.optim.lr_scheduler.OneCycleLR(
                self.optimizer, given.lr, given.epochs * self.steps, pct_start=0.2, cycle_momentum=False
            )
        if given.anneal_period:
            return torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
                self.optimizer, T_0=given.anneal_period, T_mult=given.anneal_mult
            )
        return None

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return math.ceil(len(self.labels) * self.protocol.augmult / self.protocol.batch_size)

    def step_losses(self) -> tuple[tuple[float, ...], ...]:
        """Training loss of every step so far, by epoch."""
        return tuple(tuple(losses.tolist()) for losses in self._losses)

    def run(self) -> Iterator[EpochScore]:
        """Train; yields the score of every epoch. Raises UserError when the loss is no longer a number."""
        epochs = self.protocol.epochs
        schedule = self._schedule()
        # the bar counts steps, because an epoch of a large network takes minutes; it is shown on a terminal only
        hidden = None if self.progress else True
        with tqdm(total=epochs * self.steps, desc=self.name, unit="step", leave=False, disable=hidden) as bar:
            for epoch in range(epochs):
                with seeded(self.seed * 100_003 + epoch + 1, self.device):
                    loss = self._epoch(epoch, schedule, bar)
                if not math.isfinite(loss):
                    raise UserError(
                        f"training of {self.name} diverged in epoch {epoch + 1} (loss {loss}); lower the learning rate"
                    )
                score = self._score(epoch, loss)
                shown = "" if score.validation_accuracy is None else f", {100 * score.validation_accuracy:.1f} %"
                bar.set_postfix_str(f"epoch {epoch + 1}/{epochs}, loss {loss:.3g}{shown}")
                yield score

    def _epoch(self, epoch: int, schedule: torch.optim.lr_scheduler.LRScheduler | None, bar: tqdm) -> float:
        self.network.train()
        protocol, losses, total = self.protocol, [], torch.zeros((), device=self.device)
        if protocol.decay_period:
            for group in self.optimizer.param_groups:
                group["lr"] = protocol.lr * protocol.decay_factor ** (epoch // protocol.decay_period)
        order = torch.randperm(len(self.labels) * protocol.augmult).to(self.device) // protocol.augmult
        for step, index in enumerate(order.split(protocol.batch_size)):
            images = self.images[index]
            for name in protocol.augment:
                images = AUGMENTATIONS[name](images)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
                logits = self.network(images)
            loss = F.cross_entropy(logits.float(), self.labels[index], label_smoothing=protocol.label_smoothing)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            if protocol.one_cycle and schedule is not None:
                schedule.step()
            elif isinstance(schedule, torch.optim.lr_scheduler.CosineAnnealingWarmRestarts):
                schedule.step(epoch + step / self.steps)  # the unit is epochs
            if self.average is not None:
                self.average.update_parameters(self.network)
            losses.append(loss.detach())
            total += losses[-1] * len(index)
            bar.update(1)
        self._losses.append(torch.stack(losses).cpu())
        return float(total) / len(order)

    def _score(self, epoch: int, loss: float) -> EpochScore:
        due = (self.protocol.epochs - 1 - epoch) % self.protocol.validation_period == 0
        if self.validation is None or not due:
            return EpochScore(loss)
        scored = [
            score_classifier(
                network,
                self.validation,
                preparation=self.preparation,
                device=self.device,
                batch_size=self.protocol.scoring_batch,
            )
            for network in (self.network, *([self.average.module] if self.average is not None else []))
        ]
        return EpochScore(loss, *scored[0], *(scored[1] if len(scored) > 1 else ()))


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a network; update n has the decay min(decay, (1+n) / (10+n)).

    Running statistics of batch norms are copied, not averaged.
    """

    def mix(average: Tensors, current: Tensors, updates: Tensor | int) -> None:
        n = int(updates)
        torch._foreach_lerp_(average, current, 1 - min(decay, (1 + n) / (10 + n)))

    average = AveragedModel(network, multi_avg_fn=mix).requires_grad_(False)
    average.n_averaged.fill_(1)  # the initial weights count as the first model, so that no update copies
    return average


def score_classifier(
    network: nn.Module,
    samples: SampleSet,
    *,
    preparation: Preparation | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 1000,
) -> tuple[float, float]:
    """Accuracy (0-1) and mean cross-entropy (nats) of a classifier on labelled images.

    preparation: that of its training; one grey channel of 32x32 when None. Labels without an output of the classifier
    count as wrong and are left out of the loss.
    """
    preparation = preparation or Preparation()
    images, labels = samples.images, labels_of(samples, "the test set")
    network.eval()
    correct, loss, counted = 0, 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(labels), batch_size):
            target = labels[start : start + batch_size].to(device)
            logits = network(preparation(images[start : start + batch_size].to(device)))
            correct += int((logits.argmax(dim=1) == target).sum())
            known = target < logits.shape[1]
            loss += float(F.cross_entropy(logits[known], target[known], reduction="sum"))
            counted += int(known.sum())
    if counted < len(labels):
        logger.warning(
            "%d of %d images have a class that the training set lacks; they count as wrong",
            len(labels) - counted,
            len(labels),
        )
    return correct / len(labels), loss / max(counted, 1)


def labels_of(samples: SampleSet, which: str) -> Tensor:
    """The labels of a sample set. Raises UserError naming ``which`` when it has none or is empty."""
    if samples.labels is None:
        raise UserError(f"{which} have no labels; sample from a class-conditional model to get them")
    if not len(samples.labels):
        raise UserError(f"{which} are empty")
    return samples.labels


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed initialisation, order, dropout and augmentation inside the block, then restore the random state."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
