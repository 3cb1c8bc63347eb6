"""A linear classifier trained directly on the private records, by `fit_linear`: the hardest baseline of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm.errors import UserError, nearest
from ldm.evaluation.classifiers.training import labels_of
from ldm.privacy.accounting import calibrate
from ldm.privacy.ledger import Ledger
from ldm.privacy.statistics import LinearTraining, fit_linear
from ldm.reports.benchmark.config import delta_for
from ldm.samples import SampleSet
from ldm.training.private_classifier import KEYS, load_feature_map


def linear_section(section: Mapping[str, Any], epsilon: str) -> dict[str, Any]:
    """The settings of the section ``linear`` at an epsilon: its own, overridden by those of ``budgets``.

    Raises UserError for an unknown key or an epsilon without settings.
    """
    common = {key: value for key, value in section.items() if key != "budgets"}
    budgets = section.get("budgets") or {}
    if epsilon not in budgets:
        raise UserError(f"linear.budgets has no epsilon {epsilon}; there is {', '.join(budgets)}")
    settings = {**common, **(budgets[epsilon] or {})}
    for key in settings:
        if key not in KEYS or key == "noise_multiplier":
            raise UserError(f"linear.{key} is unknown{nearest(key, KEYS)}; the noise follows from epsilon")
    return settings


def linear_accuracy(
    train: SampleSet, test: SampleSet, classes: int, epsilon: float, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Train with ``epsilon`` on ``train`` and score on ``test``; returns accuracy (0-1) and the privacy spent.

    ``classes`` is the public number of classes: the largest label would be a fact about one record.
    """
    how = dict(settings)
    features = load_feature_map(how.pop("features"))
    delta, labels = delta_for(len(train)), labels_of(train, "the private records")
    sigma = calibrate(target_epsilon=epsilon, delta=delta, sample_rate=1.0, steps=1)
    ledger = Ledger()
    training = LinearTraining(sigma, len(train), **how)
    classifier, _ = fit_linear(features(train.images), labels, classes, training, ledger=ledger)
    accuracy = (classifier(features(test.images)) == labels_of(test, "the test set")).float().mean().item()
    return {"accuracies": [accuracy], "epsilon": ledger.epsilon(delta), "delta": delta}
