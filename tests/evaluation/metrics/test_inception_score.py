"""The Inception score from a stream of logits."""

from __future__ import annotations

import math

import pytest
import torch

from ldm.errors import UserError
from ldm.evaluation.metrics.inception_score import InceptionScore, RunningInceptionScore


def score(logits: torch.Tensor, splits: int, batch: int = 7) -> InceptionScore:
    running = RunningInceptionScore(splits)
    for part in logits.split(batch):
        running.update(part)
    return running.result()


def test_agrees_with_torch_fidelity() -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = 3 * torch.randn(100, 12, generator=torch.Generator().manual_seed(0))
    theirs = isc_features_to_metric(torch.cat([logits[i::5] for i in range(5)]), splits=5, shuffle=False)
    found = score(logits, 5)
    assert found.value == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert found.deviation == pytest.approx(theirs["inception_score_std"], rel=1e-6)
    assert score(logits, 5, batch=100).value == pytest.approx(found.value, rel=1e-12)


def test_ends_of_the_scale() -> None:
    sure = 200.0 * torch.eye(10).repeat(10, 1)
    assert score(sure, 1).value == pytest.approx(10)
    assert score(sure[:1].repeat(50, 1), 2).value == pytest.approx(1)
    assert score(torch.zeros(50, 10), 2).value == pytest.approx(1)


def test_logits_of_any_size_give_a_number() -> None:
    found = score(torch.tensor([[1e4, -1e4], [-1e4, 1e4], [1e4, -1e4], [-1e4, 1e4]]), 1)
    assert math.isfinite(found.value) and found.value == pytest.approx(2)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match="19 images do not fill 10 splits.*20 needed"):
        score(torch.zeros(19, 3), 10)
    with pytest.raises(UserError, match="0 images"):
        RunningInceptionScore().result()
