"""A classifier trained directly on the private records with DP-SGD: the baseline of classifiers trained on samples."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ldm.evaluation.classifiers.networks import Preparation, build_classifier
from ldm.evaluation.classifiers.training import averaged, labels_of, score_classifier
from ldm.privacy.clipping import Clipping, PerRecordClipper
from ldm.privacy.ledger import Ledger
from ldm.privacy.noise import GaussianNoise
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.randomness import LossDraws
from ldm.privacy.sampling import PoissonBatchSampler
from ldm.reports.benchmark.config import DirectTraining, delta_for
from ldm.reports.benchmark.machine import device
from ldm.samples import SampleSet

logger = logging.getLogger(__name__)


def direct_accuracy(
    train: SampleSet,
    test: SampleSet,
    classes: int,
    epsilon: float,
    how: DirectTraining,
    size: int = 28,
    grey: bool = True,
) -> dict[str, Any]:
    """Train with ``epsilon`` on ``train`` and score the average of the weights over the last steps on ``test``.

    ``classes`` is the public number of classes: the largest label would be a fact about one record. ``size``, ``grey``:
    the form in which the classifier sees the images.

    The last step counts, so no data choose a step. Sampling and noise are secret. Returns accuracy (0-1) and the
    privacy that was spent.
    """
    plan = PrivacyPlan.calibrate(
        target_epsilon=epsilon,
        delta=delta_for(len(train)),
        num_records=len(train),
        batch_size=how.batch_size,
        steps=how.steps,
        max_grad_norm=how.max_grad_norm,
    )
    preparation = Preparation(size, 1 if grey else 3)
    images, labels = preparation(train.images), labels_of(train, "the private records")
    network = build_classifier(how.classifier, in_channels=images.shape[1], size=size, num_classes=classes).eval()
    network.to(device())
    ledger = Ledger()
    average = averaged(network, 0.98)
    for _ in tqdm(
        private_steps(network, images, labels, plan, ledger, how), total=plan.steps, desc="direct", leave=False
    ):
        average.update_parameters(network)
    accuracy, _ = score_classifier(average.module, test, preparation=preparation, device=device())
    return {"accuracies": [accuracy], "epsilon": ledger.epsilon(plan.delta), "delta": plan.delta}


def private_steps(
    network: nn.Module, images: Tensor, labels: Tensor, plan: PrivacyPlan, ledger: Ledger, how: DirectTraining
) -> Iterator[None]:
    """The plan's steps, one at a time; dropout is off, so that a gradient depends on its record only."""
    parameters = dict(network.named_parameters())
    clipper = PerRecordClipper(network, parameters, Clipping(plan.max_grad_norm, style=plan.clipping))
    noise, draws = GaussianNoise(plan.noise_std), LossDraws()
    optimizer = torch.optim.Adam(parameters.values(), lr=how.learning_rate)
    epoch, where = round(1 / plan.sample_rate), next(network.parameters()).device
    sampler = PoissonBatchSampler(len(images), plan.sample_rate, epoch)

    def loss(rows: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(network(rows["image"]), rows["label"], reduction="none")

    while ledger.steps < plan.steps:
        for batch in sampler:
            with draws.step(where):
                for start in range(0, len(batch), how.max_batch_size):
                    index = torch.as_tensor(batch[start : start + how.max_batch_size], dtype=torch.long)
                    rows = {"image": images[index].to(where), "label": labels[index].to(where)}
                    clipper.accumulate(loss, rows)
            sums = clipper.pop_sums()
            ledger.record(plan.event())
            noise.add_(sums)
            for name, parameter in parameters.items():
                parameter.grad = sums[name] / plan.expected_batch_size
            optimizer.step()
            yield
            if ledger.steps >= plan.steps:
                return
