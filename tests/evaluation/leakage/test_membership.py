"""Membership inference: a memorising model is caught, an independent one is not, bounds and curves are right."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes

from ldm.errors import UserError
from ldm.evaluation.leakage.membership import (
    advantage_bound,
    draw_roc,
    epsilon_of_advantage,
    membership_inference,
    roc_curve,
    tpr_bound,
)


def polynomial_losses(degree: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared errors of a polynomial on the points it was fitted to, and on others of the same kind."""
    random = np.random.default_rng(seed)
    x = random.uniform(-1, 1, 800)
    y = np.sin(3 * x) + random.normal(0, 0.3, 800)
    fitted = np.polynomial.Chebyshev.fit(x[:400], y[:400], degree, domain=[-1, 1])
    errors = (fitted(x) - y) ** 2
    return errors[:400], errors[400:]


def test_a_memorising_model_is_detected_and_flagged() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit through every point is poorly conditioned
        losses = polynomial_losses(395, 0)
    result = membership_inference(*losses, epsilon=1.0, delta=1e-5)
    assert result.auc > 0.8 and result.auc_interval[0] > 0.7
    assert result.advantage > 0.7 and result.exceeds
    assert result.least_epsilon > 1.0
    assert "MORE than the guarantee allows" in str(result)


def test_an_independent_model_is_not() -> None:
    flagged, covered = 0, 0
    for seed in range(40):
        result = membership_inference(*polynomial_losses(1, seed), epsilon=0.0, delta=0.0)
        flagged += result.exceeds
        covered += result.auc_interval[0] <= 0.5 <= result.auc_interval[1]
        assert result.allowed == 0 and result.least_epsilon == pytest.approx(0, abs=0.3)
    assert flagged <= 1 and covered >= 35  # 38 expected


def test_success_within_the_guarantee_is_not_flagged() -> None:
    random = np.random.default_rng(0)
    result = membership_inference(random.normal(-1, 1, 500), random.normal(0, 1, 500), epsilon=3.0, delta=1e-5)
    assert 0.3 < result.advantage < 0.5 < result.allowed and not result.exceeds
    assert "within the guarantee" in str(result)


@pytest.mark.parametrize(
    ("epsilon", "delta", "expected"),
    [
        (0.0, 0.0, 0.0),
        (0.0, 0.25, 0.25),
        (math.log(3), 0.0, 0.5),
        (math.log(3), 0.1, 0.55),
        (1.0, 1e-5, (math.e - 1 + 2e-5) / (math.e + 1)),
        (800.0, 1e-5, 1.0),
        (math.inf, 0.5, 1.0),
        (2.0, 1.0, 1.0),
    ],
)
def test_the_bound_on_the_advantage(epsilon: float, delta: float, expected: float) -> None:
    assert advantage_bound(epsilon, delta) == pytest.approx(expected, abs=1e-12)


def test_the_bound_is_what_randomised_response_reaches() -> None:
    """Answering truly with chance e^eps / (1 + e^eps) is eps-private, and no test of it does better than this."""
    for epsilon in (0.1, 1.0, 4.0):
        truth = math.exp(epsilon) / (1 + math.exp(epsilon))
        assert advantage_bound(epsilon, 0.0) == pytest.approx(truth - (1 - truth))


@settings(max_examples=50, deadline=None)
@given(epsilon=st.floats(0, 20), delta=st.floats(0, 0.5))
def test_the_bounds_agree_with_each_other(epsilon: float, delta: float) -> None:
    rates = np.linspace(0, 1, 2001)
    best = float((tpr_bound(rates, epsilon, delta) - rates).max())
    bound = advantage_bound(epsilon, delta)
    assert best <= bound + 1e-9
    corner = (1 - delta) / (1 + math.exp(epsilon))  # where the two lines meet
    assert float(tpr_bound(corner, epsilon, delta) - corner) == pytest.approx(bound, abs=1e-9)
    if 0.001 < bound < 0.9999 and epsilon > 0.001:
        assert epsilon_of_advantage(bound, delta) == pytest.approx(epsilon, rel=1e-3, abs=1e-6)


def direct(members: np.ndarray, held_out: np.ndarray) -> tuple[float, float]:
    """AUC by all pairs, and the best tpr - fpr by all thresholds."""
    pairs = [1.0 if m < h else 0.5 if m == h else 0.0 for m in members for h in held_out]
    cuts = [0.0] + [float((members <= t).mean() - (held_out <= t).mean()) for t in np.append(members, held_out)]
    return float(np.mean(pairs)), max(cuts)


@pytest.mark.parametrize("rounded", [False, True])
def test_curve_against_a_direct_count(rounded: bool) -> None:
    random = np.random.default_rng(1)
    members, held_out = random.normal(-0.5, 1, 60), random.normal(0, 1, 45)
    if rounded:  # many equal losses
        members, held_out = members.round(), held_out.round()
    roc = roc_curve(members, held_out)
    auc, advantage = direct(members, held_out)
    assert roc.auc == pytest.approx(auc) and roc.advantage == pytest.approx(advantage)
    assert (roc.fpr[0], roc.tpr[0], roc.fpr[-1], roc.tpr[-1]) == (0, 0, 1, 1)
    for rate in (0.0, 0.1, 0.5):
        expected = max([0.0] + [float((members <= t).mean()) for t in held_out if (held_out <= t).mean() <= rate])
        assert roc.tpr_at(rate) >= expected
        assert all((held_out <= t).mean() <= rate for t in [roc.thresholds[roc.fpr <= rate][-1]])


@pytest.mark.parametrize("rounded", [False, True])
def test_curve_against_sklearn(rounded: bool) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(2)
    members, held_out = random.normal(-0.3, 1, 200), random.normal(0, 1, 300)
    if rounded:
        members, held_out = members.round(1), held_out.round(1)
    roc = roc_curve(members, held_out)
    truth, score = np.repeat([1, 0], [200, 300]), -np.concatenate([members, held_out])
    fpr, tpr, _ = metrics.roc_curve(truth, score, drop_intermediate=False)
    assert np.allclose(roc.fpr, fpr) and np.allclose(roc.tpr, tpr)
    assert roc.auc == pytest.approx(metrics.roc_auc_score(truth, score))


def test_intervals_hold_what_they_promise() -> None:
    """Shifted normals: the true AUC is Phi(d / sqrt 2), the true advantage 2 Phi(d / 2) - 1."""
    random, shift = np.random.default_rng(3), 0.8
    auc = 0.5 * (1 + math.erf(shift / 2))
    advantage = math.erf(shift / 2 / math.sqrt(2))
    inside_auc = inside_advantage = 0
    for _ in range(200):
        result = membership_inference(random.normal(-shift, 1, 150), random.normal(0, 1, 100))
        inside_auc += result.auc_interval[0] <= auc <= result.auc_interval[1]
        inside_advantage += result.advantage_interval[0] <= advantage <= result.advantage_interval[1]
    assert 180 <= inside_auc <= 199 and inside_advantage >= 190


def test_the_width_of_the_advantage_interval() -> None:
    result = membership_inference(np.arange(200.0), np.arange(50.0) + 75, confidence=0.9)
    slack = math.sqrt(math.log(40) / 400) + math.sqrt(math.log(40) / 100)
    assert result.advantage_interval[1] == pytest.approx(result.advantage + slack)


def test_results_are_plain_thin_and_drawn(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    result = membership_inference(random.random(5000), random.random(5000), epsilon=math.inf, delta=1e-5)
    content = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert content["epsilon"] == "infinite" and content["allowed"] == 1.0 and not content["exceeds"]
    assert len(content["curve"]) <= 512 and content["curve"][0] == [0, 0] and content["curve"][-1] == [1, 1]
    assert list(content["tpr_at"]) == ["0.001", "0.01", "0.1"] and "not covered" in content["warning"]
    bounded = membership_inference(random.random(50), random.random(50), epsilon=1.0, delta=1e-5)
    draw_roc([bounded, result], tmp_path / "roc.png")
    assert (tmp_path / "roc.png").read_bytes().startswith(b"\x89PNG")
    assert math.isinf(epsilon_of_advantage(1.0, 0.0))


def test_what_is_stated_is_not_below_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(4)
    result = membership_inference(random.random(50), random.random(50), epsilon=1.0004, delta=1.5148541e-6)
    assert "epsilon 1.001, delta 1.51486e-06 allow 0.463:" in str(result)  # tanh(0.5002) = 0.46227...
    labels: list[str] = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda *args, **given: labels.append(given["label"]) or plot(*args, **given))
    draw_roc([result], tmp_path / "roc.png")
    assert labels[-1] == "most that epsilon 1.01 allows"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epsilon": 1.0}, "belong together"),
        ({"confidence": 1.0}, "confidence"),
        ({"epsilon": -1.0, "delta": 0.0}, "at least 0"),
        ({"epsilon": math.nan, "delta": 0.0}, "at least 0"),
        ({"epsilon": 1.0, "delta": 2.0}, "delta"),
    ],
)
def test_settings_are_checked(changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        membership_inference([1.0, 2.0], [1.0, 2.0], **changes)


def test_losses_are_checked() -> None:
    with pytest.raises(UserError, match="members have shape"):
        membership_inference([1.0], [1.0, 2.0])
    with pytest.raises(UserError, match="1 losses of held-out images are not finite"):
        membership_inference([1.0, 2.0], [1.0, math.nan])
