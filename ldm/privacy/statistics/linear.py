"""`fit_linear`: a linear classifier on public features, trained by noisy gradients of all records.

Tramèr and Boneh 2021 (arXiv 2011.11660): on handcrafted features, few noisy steps give a better private classifier than
a deep network. Every step is one sum query with one entry in the ledger; T steps with noise multiplier σ √T cost
exactly what one query with σ costs (Dong et al. 2022, corollary 2).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.privacy.event import ADD_OR_REMOVE_ONE, History
from ldm.privacy.ledger import Ledger
from ldm.privacy.statistics.query import CHUNK, Release, event_of, release
from ldm.privacy.validate import number, whole

logger = logging.getLogger(__name__)

#: The weights of the last steps are averaged: this share of all steps.
AVERAGED = 0.4
#: Every contribution stays below the bound by this share, which covers the rounding of its float32 numbers.
_SLACK = 1e-5


@dataclass(frozen=True, eq=False)  # tensors have no single truth value
class LinearClassifier:
    """Class scores x @ weight + bias of features x (N, d); ``weight`` (d, classes), ``bias`` (classes,), float32."""

    weight: Tensor
    bias: Tensor

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.bias)

    def scores(self, features: Tensor) -> Tensor:
        """Scores (N, classes), whose softmax are the class probabilities."""
        if features.ndim != 2 or features.shape[1] != len(self.weight):
            raise UserError(f"features have shape {tuple(features.shape)}; the classifier has {len(self.weight)}")
        return features.float() @ self.weight + self.bias

    def __call__(self, features: Tensor) -> Tensor:
        """The most probable class of each row, int64 (N,)."""
        return self.scores(features).argmax(dim=1)

    @classmethod
    def zeros(cls, features: int, classes: int) -> LinearClassifier:
        """The classifier that finds all classes equally probable."""
        return cls(torch.zeros(features, classes), torch.zeros(classes))


@dataclass(frozen=True)
class LinearTraining:
    """Public constants of `fit_linear`.

    ``noise_multiplier`` σ is that of all steps together; each step has σ sqrt(``steps``). ``learning_rate`` multiplies
    the noisy sum over ``records`` · ``clip_norm``, where ``records`` is a *public* number of records; it decays
    linearly in the second half. Raises UserError for values out of range.
    """

    noise_multiplier: float
    records: int
    steps: int = 60
    learning_rate: float = 40.0
    clip_norm: float = 0.3
    momentum: float = 0.9

    def __post_init__(self) -> None:
        for name in ("noise_multiplier", "learning_rate", "clip_norm"):
            number(f"classifier {name}", getattr(self, name), above=0)
        if isinstance(self.momentum, bool) or not 0 <= self.momentum < 1:
            raise UserError(f"classifier momentum is {self.momentum!r}, it must be a number from 0 to below 1")
        whole("classifier steps", self.steps)
        whole("classifier records", self.records)

    @property
    def step_multiplier(self) -> float:
        """The noise multiplier of one step."""
        return self.noise_multiplier * math.sqrt(self.steps)

    def history(self, relation: str) -> History:
        """The ledger's charges for the whole training, known before any record is read."""
        return [(event_of(self.step_multiplier, relation), self.steps)]

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.learning_rate * min(1.0, 2 * (self.steps - step) / self.steps)


@dataclass(frozen=True, eq=False)
class ClassifierGradient:
    """The sum of each record's gradient of the cross entropy, clipped to norm C = ``clip_norm``.

    ``classifier`` is public: zeros, or computed from earlier releases. Records are rows of features (N, d). The sum
    ``gradient`` is (d + 1, classes) float64, with the bias in its last row. All fields are public constants.
    """

    classifier: LinearClassifier
    clip_norm: float
    name: str = "gradient of a linear classifier"

    @property
    def bound(self) -> float:
        """Largest norm of one record's contribution: C."""
        return self.clip_norm

    def describe(self) -> dict[str, Any]:
        """The public constants as plain JSON values."""
        return {
            "classes": self.classifier.classes,
            "features": len(self.classifier.weight),
            "clip_norm": self.clip_norm,
        }

    def total(self, records: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The sum over feature rows (N, d) with labels (N,); see the class."""
        classes = self.classifier.classes
        result = torch.zeros(len(self.classifier.weight) + 1, classes, dtype=torch.float64)
        for start in range(0, len(records), CHUNK):
            rows, which = records[start : start + CHUNK].flatten(1).float(), labels[start : start + CHUNK]
            lengths = (rows.square().sum(dim=1) + 1).sqrt()  # the bias sees a feature of 1
            usable = torch.isfinite(lengths) & (which >= 0) & (which < classes)
            if not usable.all():
                rows, which, lengths = rows[usable], which[usable], lengths[usable]
            errors = self.classifier.scores(rows).softmax(dim=1).nan_to_num(nan=0.0)  # of scores beyond float32
            errors[torch.arange(len(which)), which] -= 1
            norms = errors.norm(dim=1) * lengths  # the gradient is an outer product
            errors *= (self.clip_norm * (1 - _SLACK) / norms.clamp(min=self.clip_norm))[:, None]
            # summed in float64: one record more moves the others to other places in their chunks, where float32 would
            # round sums of thousands of records otherwise; this order is faster than rows.T @ errors
            exact = errors.double()
            result[:-1] += (exact.T @ rows.double()).T
            result[-1] += exact.sum(dim=0)
        return {"gradient": result}


def fit_linear(
    features: Tensor,
    labels: Tensor,
    classes: int,
    training: LinearTraining,
    *,
    ledger: Ledger,
    relation: str = ADD_OR_REMOVE_ONE,
    insecure_seed: int | None = None,
) -> tuple[LinearClassifier, Release]:
    """Train on private features (N, d) with labels (N,) int64, by gradient descent with momentum on all records.

    Returns the average of the last weights, and the release that stores it. The ledger has an entry for every step
    before the step's noisy sum exists. Raises UserError for records and labels that do not belong together.
    """
    whole("classes of the classifier", classes)
    classifier = LinearClassifier.zeros(features.shape[1], classes)
    velocity = torch.zeros(features.shape[1] + 1, classes, dtype=torch.float64)
    state, average = torch.zeros_like(velocity), torch.zeros_like(velocity)
    first = training.steps - max(1, round(AVERAGED * training.steps))
    for step in range(training.steps):
        answer = release(
            ClassifierGradient(classifier, training.clip_norm),
            features,
            labels,
            noise_multiplier=training.step_multiplier,
            ledger=ledger,
            relation=relation,
            insecure_seed=insecure_seed,
        )
        velocity = training.momentum * velocity + answer.sums["gradient"] / (training.records * training.clip_norm)
        state = state - training.rate(step) * velocity
        classifier = LinearClassifier(state[:-1].float(), state[-1].float())
        if step >= first:
            average += state / (training.steps - first)
    constants = {
        **ClassifierGradient(classifier, training.clip_norm).describe(),
        "learning_rate": training.learning_rate,
        "momentum": training.momentum,
        "records": training.records,
    }
    stored = Release(
        "linear classifier on public features",
        {"weight": average},
        answer.noise_std,
        answer.event,
        constants,
        count=training.steps,
    )
    logger.info("a linear classifier was trained in %d noisy steps on all records", training.steps)
    return classifier_of(stored), stored


def classifier_of(stored: Release) -> LinearClassifier:
    """The classifier of a release of `fit_linear`. Raises UserError for another release."""
    weight = stored.sums.get("weight")
    if weight is None or weight.ndim != 2 or len(weight) < 2:
        raise UserError(f"the release {stored.name!r} holds no classifier")
    return LinearClassifier(weight[:-1].float(), weight[-1].float())
