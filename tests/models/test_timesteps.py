"""How timesteps are drawn and weighed, the optimizer by name, and the average by a power: all from the YAML."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ldm.errors import UserError
from ldm.models.diffusion.timesteps import TimestepRule
from ldm.models.diffusion.warm_up import FurtherTraining, train_further
from ldm.modules.adam_bc import AdamBC
from ldm.modules.ema import LitEma
from tests import tiny


def test_timesteps_are_drawn_as_often_as_the_table_says() -> None:
    rule = TimestepRule(4, sampling={"steps": [0, 3], "values": [1, 8]})
    torch.manual_seed(0)
    counts = torch.bincount(rule.draw(30_000, torch.device("cpu")), minlength=4) / 30_000
    assert counts.tolist() == pytest.approx([1 / 15, 2 / 15, 4 / 15, 8 / 15], abs=0.01)
    assert rule.draw(0, torch.device("cpu")).shape == (0,)


@pytest.mark.parametrize("sampling", [None, {"steps": [0, 9], "values": [1, 5]}])
def test_weights_have_a_mean_of_one_over_what_is_drawn(sampling: Any) -> None:
    rule = TimestepRule(10, {"steps": [0, 4, 9], "values": [3, 1, 0.1]}, sampling)
    torch.manual_seed(0)
    t = rule.draw(100_000, torch.device("cpu"))
    assert float(rule.weighted(torch.ones(len(t)), t).mean()) == pytest.approx(1, abs=0.01)
    ratio = rule.weighted(torch.ones(2), torch.tensor([0, 4]))
    assert float(ratio[0] / ratio[1]) == pytest.approx(3)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"step": [0], "values": [1]}, "unknown"),
        ({"steps": [0, 1], "values": [1]}, "as many"),
        ({"steps": [1, 0], "values": [1, 1]}, "must rise"),
        ({"steps": [0, 1], "values": [1, 0]}, "positive"),
        ({}, "one at least"),
    ],
)
def test_a_table_that_is_none_is_named(table: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        TimestepRule(10, table)


def test_the_private_loss_of_a_row_carries_the_weight_of_its_timestep() -> None:
    plain = tiny.build(tiny.ldm())
    weighted = tiny.build(tiny.ldm(timestep_weights={"steps": [0, 999], "values": [4, 1]}))
    tiny.scatter(plain)
    weighted.load_state_dict(plain.state_dict())
    rows = {
        "z": torch.randn(3, 2, 4, 4),
        "noise": torch.randn(3, 2, 4, 4),
        "t": torch.tensor([0, 500, 999]),
        "cond:class_label": torch.tensor([1, 2, 3]),
    }
    expected = plain.per_example_losses(rows) * weighted.timesteps.weights[rows["t"]]
    assert torch.allclose(weighted.per_example_losses(rows), expected)
    assert "timesteps" not in str(list(weighted.state_dict()))


def test_the_optimizer_is_chosen_by_name() -> None:
    model = tiny.build(tiny.ldm(optimizer_config={"name": "adam_bc", "betas": [0.9, 0.99]}))
    optimizer = model.configure_optimizers()
    assert isinstance(optimizer, AdamBC) and optimizer.defaults["noise_variance"] == 0
    with pytest.raises(UserError, match="adam_bd"):
        tiny.build(tiny.ldm(optimizer_config={"name": "adam_bd"})).configure_optimizers()


def test_an_average_by_a_power_weighs_steps_by_it() -> None:
    """With power g the weights of step t count like t^g: the textbook sum, and no trace of the start."""
    layer = torch.nn.Linear(1, 1, bias=False)
    average = LitEma(layer, power=2.0)
    values = [3.0, -1.0, 5.0, 2.0]
    for value in values:
        torch.nn.init.constant_(layer.weight, value)
        average(layer)
    steps = range(1, 5)
    shares = [t**3 - (t - 1) ** 3 for t in steps]
    expected = sum(share * value for share, value in zip(shares, values, strict=True)) / sum(shares)
    assert float(average.get_buffer("weight")) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UserError, match="power"):
        LitEma(layer, power=-1.0)
    assert tiny.build(tiny.ldm(ema_power=6.0)).model_ema.power == 6.0


# ---------------------------------------------------------------------- further training on draws


def draw(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(10, (count,), generator=generator)
    return torch.randn(count, 2, 4, 4, generator=generator) * 0.1 + labels[:, None, None, None] / 5, labels


def loss_on(model: Any, low: int = 0, high: int = 1000) -> float:
    generator = torch.Generator().manual_seed(9)
    z, labels = draw(400, generator)
    t = torch.randint(low, high, (400,), generator=generator)
    noise = torch.randn(z.shape, generator=generator)
    with torch.no_grad():
        condition = model.get_learned_conditioning({"class_label": labels})
        return float(model.loss_terms(z, t, noise, condition)["loss"].mean())


def test_further_training_learns_what_is_drawn_and_leaves_the_world_as_it_was() -> None:
    torch.manual_seed(3)
    model = tiny.build(tiny.ldm(train_condition_only=True))
    model.select_trainable()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    before, state = loss_on(model), torch.get_rng_state()
    train_further(model, draw, FurtherTraining(60, 32, 3e-3), progress=False)
    assert loss_on(model) < 0.8 * before
    assert torch.equal(torch.get_rng_state(), state)
    assert frozen == {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert all(parameter.grad is None for parameter in model.parameters())
    with model.ema_scope():
        averaged = loss_on(model)
    assert averaged == loss_on(model)


def test_the_same_seed_gives_the_same_model() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(tiny.build(tiny.ldm()))
        train_further(models[-1], draw, FurtherTraining(3, 8), progress=False)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_early_timesteps_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build(tiny.ldm())
    seen: list[int] = []
    real = model.loss_terms
    monkeypatch.setattr(model, "loss_terms", lambda z, t, *rest: (seen.extend(t.tolist()), real(z, t, *rest))[1])
    train_further(model, draw, FurtherTraining(5, 64, first_timestep=600), progress=False)
    assert min(seen) >= 600 and max(seen) < 1000
    with pytest.raises(UserError, match="first_timestep"):
        train_further(model, draw, FurtherTraining(5, 64, first_timestep=1000))
    with pytest.raises(UserError, match="steps"):
        FurtherTraining(-1)


def test_a_weight_limit_takes_the_place_of_the_private_steps_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"steps": [0, 999], "values": [1.0, 40.0]}
    model, seen = tiny.build(tiny.ldm(timestep_weights=table)), []
    own, real = model.timesteps, model.loss_terms
    monkeypatch.setattr(model, "loss_terms", lambda *given: (seen.append(model.timesteps.weights), real(*given))[1])
    for limit in (1.0, 50.0):
        train_further(model, draw, FurtherTraining(1, 8, weight_limit=limit), progress=False)
    assert seen[0] is own.weights and own.weights is not None
    assert seen[1] is None  # else both weights would be multiplied
    assert model.timesteps is own


def test_a_weight_limit_makes_the_loss_that_of_v_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """v = a e - s z (Salimans and Ho 2022): a wrong noise at z_t gives another v, and its error is what is weighed."""
    model = tiny.build(tiny.ldm())
    t = torch.tensor([0, 300, 600])
    a, s = model.sqrt_alphas_cumprod[t], model.sqrt_one_minus_alphas_cumprod[t]
    z, noise, guess = torch.randn(3, 3)
    at_t = a * z + s * noise
    error = ((a * guess - s * (at_t - s * guess) / a) - (a * noise - s * z)).square()
    weights = FurtherTraining(1, weight_limit=1e6).weights(model.alphas_cumprod)[t]
    assert torch.allclose(weights * (guess - noise).square(), error, rtol=1e-3)

    parameter, seen, slopes = next(model.model.parameters()), [], []
    parameter.register_hook(lambda slope: slopes.append(float(slope.flatten()[0])))
    summed = lambda z, t, *rest: (seen.append(t), {"loss": parameter.sum().expand(len(t))})[1]  # noqa: E731
    monkeypatch.setattr(model, "loss_terms", summed)
    for limit in (1.0, 50.0):
        train_further(model, draw, FurtherTraining(1, 64, weight_limit=limit), progress=False)
        inverse = 1 / model.alphas_cumprod[seen[-1]]
        assert slopes[-1] == pytest.approx(float(inverse.clamp(max=limit).mean()), rel=1e-4)
    assert slopes[0] == pytest.approx(1) and slopes[1] > 5

    with pytest.raises(UserError, match="weight_limit 0.5"):
        FurtherTraining(1, weight_limit=0.5)
    monkeypatch.setattr(model, "parameterization", "x0")
    with pytest.raises(UserError, match="this one predicts x0"):
        train_further(model, draw, FurtherTraining(1, weight_limit=50.0))
