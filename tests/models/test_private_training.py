"""One private step on whole models: bounded by one record whatever the chunks, moved by nothing but the mechanism."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.checkpoint import state_digest
from ldm.errors import UserError
from ldm.models.diffusion.microbatch import fitting_size
from ldm.models.diffusion.private_training import PrivateTraining
from ldm.privacy.ledger import Ledger
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.ranks import Ranks
from ldm.privacy.sums import FlatSums
from tests import tiny

RECORDS = 4
BOUND = 0.1
# Sums of fp32 numbers carry rounding of about their own size times 1e-7.
SLACK = 1 + 1e-5

#: Every rule that picks parameters, and the kind of network it is for.
SELECTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "condition": ("spatial", {"train_condition_only": True}),
    "attention": ("attention", {"train_attention_only": True}),
    "input_blocks": ("spatial", {"train_input_blocks_only": True}),
    "input_blocks_of_attention": ("attention", {"train_input_blocks_only": True}),
    "res_blocks": ("spatial", {"train_resblocks_only": True}),
    "all": ("spatial", {}),
    "ablation_blocks": ("attention", {"train_attention_only": True, "ablation_blocks": 3}),
}


def plan(**changes: Any) -> PrivacyPlan:
    given = {
        "sample_rate": 0.25,
        "steps": 100,
        "noise_multiplier": 1.0,
        "max_grad_norm": BOUND,
        "delta": 1e-3,
        "expected_batch_size": 4,
        "insecure_seed": 7,
    }
    return PrivacyPlan(**{**given, **changes})


def model_of(kind: str = "spatial", **params: Any) -> Any:
    """A model with random weights in training mode that wants private training."""
    torch.manual_seed(0)
    model = tiny.build(tiny.ldm(kind, dp_config={"enabled": True}, **params))
    tiny.scatter(model)
    return model.train()


class Alone:
    """Stands in for the Trainer: hands the model its optimizer and scheduler, as Lightning does."""

    def __init__(self, model: Any, lr: float = 1e-2, schedule: Callable[[int], float] | None = None):
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule) if schedule else None
        model.optimizers = lambda: self.optimizer
        model.lr_schedulers = lambda: self.scheduler


def training_of(model: Any, the_plan: PrivacyPlan, microbatch: int | None = None, engine: str = "bookkeeping") -> Any:
    return PrivateTraining(
        model, model.select_trainable(), the_plan, Ledger(), max_batch_size=microbatch, engine=engine
    )


def flat(sums: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([sums[name].double().flatten() for name in sorted(sums)])


# ---------------------------------------------------------------------- rule 2: sensitivity


def sums_of(training: Any, model: Any, rows: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """What a step would noise, for rows that were drawn before."""
    with monkeypatch.context() as patch:
        patch.setattr(model, "expand_batch", lambda batch, multiplicity, microbatch: rows)
        return flat(training.clipped_sums(model, {}))


def change_without(
    left_out: int,
    training: Any,
    model: Any,
    rows: dict[str, Tensor],
    multiplicity: int,
    monkeypatch: pytest.MonkeyPatch,
) -> float:
    """How far, in units of C, leaving out one record moves the sum, the others' draws being the same."""
    everyone = sums_of(training, model, rows, monkeypatch)
    keep = [row for row in range(RECORDS * multiplicity) if row // multiplicity != left_out]
    others = sums_of(training, model, {key: value[keep] for key, value in rows.items()}, monkeypatch)
    return float((everyone - others).norm()) / BOUND


@pytest.mark.parametrize("multiplicity", [1, 4])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_one_record_moves_the_sum_by_at_most_c(
    selection: str, multiplicity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, flags = SELECTIONS[selection]
    model = model_of(kind, **flags)
    training = training_of(model, plan(noise_multiplicity=multiplicity))
    rows = model.expand_batch(tiny.batch(RECORDS), multiplicity, None)
    for microbatch, left_out in ((1, 0), (3, RECORDS - 1), (None, 1)):
        training.max_batch_size = microbatch
        change = change_without(left_out, training, model, rows, multiplicity, monkeypatch)
        assert 0.9 < change <= SLACK  # gradients are far above C, so the bound is used up


def test_the_measurement_catches_copies_that_are_clipped_as_records(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(train_condition_only=True)
    training = training_of(model, plan(noise_multiplicity=4))
    rows = model.expand_batch(tiny.batch(RECORDS), 4, None)
    accumulate = training.clipper.accumulate
    monkeypatch.setattr(training.clipper, "accumulate", lambda loss, piece, *_: accumulate(loss, piece, 1))
    assert change_without(0, training, model, rows, 4, monkeypatch) > 1.5


def test_a_record_is_the_mean_of_its_copies_on_one_latent_and_one_label() -> None:
    model = model_of(train_condition_only=True)
    rows = model.expand_batch(tiny.batch(3), 4, None)
    assert {len(value) for value in rows.values()} == {12}
    for name in ("z", "cond:class_label"):
        own = rows[name].unflatten(0, (3, 4))
        assert (own == own[:, :1]).all()
    assert len(set(rows["t"].tolist())) > 3 and len(rows["noise"].flatten(1).unique(dim=0)) == 12


def test_what_a_record_brings_does_not_depend_on_the_others() -> None:
    model = model_of(train_condition_only=True)
    means = torch.randn(4, 2, tiny.LATENT, tiny.LATENT) * torch.tensor([0.1, 1.0, 5.0, 20.0]).view(4, 1, 1, 1)
    moments = torch.cat([means, torch.full_like(means, -30.0)], dim=1)  # a posterior of hardly any width
    for rows in (moments, *moments.split(1), moments[:2]):
        wanted = float(model.scale_factor) * rows[:, :2]
        assert torch.allclose(model.latents({"moments": rows}), wanted, atol=1e-5)


# ---------------------------------------------------------------------- made-up records


@pytest.mark.parametrize("selection", SELECTIONS)
def test_verification_passes_and_leaves_everything_alone(selection: str) -> None:
    kind, flags = SELECTIONS[selection]
    model = model_of(kind, **flags)
    training = training_of(model, plan(noise_multiplicity=3), microbatch=1)
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    training.verify(model)
    assert torch.equal(torch.get_rng_state(), generator)
    assert training.ledger.steps == training.noise.steps == training.draws.steps == 0
    assert not flat(training.clipper.pop_sums()).any() and training.clipper.skipped == 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_weight_that_is_used_outside_its_layer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(train_condition_only=True)
    training = training_of(model, plan())
    name, weight = next((n, p) for n, p in training.selection.parameters.items() if n.endswith("to_v.weight"))
    honest = model.per_example_losses
    monkeypatch.setattr(model, "per_example_losses", lambda rows: honest(rows) + weight.square().sum())
    with pytest.raises(UserError, match=f"gradients of '{name}' do not add up"):
        training.verify(model)


def test_a_condition_that_cannot_be_made_up_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of(train_condition_only=True)
    model.cond_stage_key = "segmentation"
    with caplog.at_level(logging.INFO):
        training_of(model, plan()).verify(model)
    assert "not verified: no record with such a condition can be made up" in caplog.text


# ---------------------------------------------------------------------- rule 1: chunks are invisible


def test_a_step_does_not_depend_on_the_size_of_its_chunks() -> None:
    results = []
    for microbatch in (1, 3, None):
        model = model_of(train_condition_only=True)
        training = training_of(model, plan(noise_multiplicity=2), microbatch)
        alone = Alone(model, schedule=lambda step: 1.0 / (1 + step))
        for seed in range(2):
            training.step(model, tiny.batch(RECORDS, seed))
        assert training.ledger.steps == training.noise.steps == 2
        assert int(model.model_ema.num_updates) == 2
        assert alone.scheduler.last_epoch == 2 and alone.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 / 3)
        gradients = {name: value.grad.clone() for name, value in training.selection.parameters.items()}
        results.append((gradients, copy.deepcopy(model.state_dict())))
    for gradients, state in results[1:]:
        for name, value in results[0][0].items():
            assert torch.allclose(value, gradients[name], rtol=1e-4, atol=1e-6), name
        for name, value in results[0][1].items():  # AdamW blows up what is almost zero
            assert torch.allclose(value.float(), state[name].float(), rtol=1e-4, atol=2e-4), name


@pytest.mark.parametrize("microbatch", [1, 3, 4, 9])
def test_records_that_fill_the_last_chunk_change_nothing(microbatch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(train_condition_only=True)
    rows = model.expand_batch(tiny.batch(RECORDS), 2, None)
    sums, sizes = [], []
    honest = model.per_example_losses
    monkeypatch.setattr(model, "per_example_losses", lambda part: (sizes.append(len(part["t"])), honest(part))[1])
    for fills in (False, True):
        training = training_of(model, plan(noise_multiplicity=2), microbatch)
        training.fills = fills
        sizes.clear()
        sums.append(sums_of(training, model, rows, monkeypatch))
    assert set(sizes) == {2 * microbatch}, "all chunks have one shape"
    assert float((sums[0] - sums[1]).norm()) <= 1e-5 * float(sums[0].norm())


def test_one_record_moves_a_filled_sum_by_at_most_c(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(train_condition_only=True)
    training = training_of(model, plan(), microbatch=3)
    training.fills = True
    rows = model.expand_batch(tiny.batch(RECORDS), 1, None)
    for left_out in range(RECORDS):
        assert 0.9 < change_without(left_out, training, model, rows, 1, monkeypatch) <= SLACK


# ---------------------------------------------------------------------- max_batch_size: auto


def test_a_size_is_found_on_made_up_records_and_remembered() -> None:
    model = model_of(train_condition_only=True)
    training = PrivateTraining(model, model.select_trainable(), plan(), Ledger(), max_batch_size="auto")
    assert training.adapts and training.max_batch_size is None
    kept: list[int] = []
    training.on_microbatch = kept.append
    state = torch.get_rng_state()
    training.choose_microbatch(model)
    assert kept == [training.max_batch_size] == [fitting_size(4, 0)] == [12], "small records: all at once"
    assert torch.equal(torch.get_rng_state(), state) and training.noise.steps == training.ledger.steps == 0
    assert not flat(training.clipper.pop_sums()).any()
    training.choose_microbatch(model)
    assert kept == [12], "a known size is kept"


def test_a_step_that_does_not_fit_is_taken_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(train_condition_only=True)
    rows = model.expand_batch(tiny.batch(RECORDS), 1, None)
    expected = sums_of(training_of(model, plan(), microbatch=1), model, rows, monkeypatch)
    honest = model.per_example_losses

    def small_memory(part: Mapping[str, Tensor]) -> Tensor:
        if len(part["t"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(part)

    monkeypatch.setattr(model, "per_example_losses", small_memory)
    training = PrivateTraining(model, model.select_trainable(), plan(), Ledger(), max_batch_size="auto")
    training.max_batch_size, kept = 12, []
    training.on_microbatch = kept.append
    found = sums_of(training, model, rows, monkeypatch)
    assert kept == [6, 3, 2]
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())
    with pytest.raises(torch.OutOfMemoryError):
        sums_of(training_of(model, plan(), microbatch=4), model, rows, monkeypatch)


def test_a_second_attempt_keeps_nothing_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(train_condition_only=True)
    rows = model.expand_batch(tiny.batch(RECORDS), 1, None)
    expected = sums_of(training_of(model, plan(), microbatch=1), model, rows, monkeypatch)
    honest, calls = model.per_example_losses, 0

    def full_once(part: Mapping[str, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(part)

    monkeypatch.setattr(model, "per_example_losses", full_once)
    training = PrivateTraining(model, model.select_trainable(), plan(), Ledger(), max_batch_size="auto")
    training.max_batch_size = 2
    found = sums_of(training, model, rows, monkeypatch)
    assert training.max_batch_size == 1 and calls == 2 + RECORDS
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


def test_noise_is_added_once_a_step_with_the_plans_standard_deviation() -> None:
    model = model_of(train_condition_only=True)
    the_plan = plan(noise_multiplier=2.0)
    training = training_of(model, the_plan, microbatch=1)
    training.noised_gradients(model, tiny.batch(RECORDS))
    noised = torch.cat([p.grad.flatten() for p in training.selection.parameters.values()]) * 4
    with training.draws.step(model.device):
        pass
    again = training_of(model, the_plan, microbatch=1)
    with again.draws.step(model.device):
        sums = again.clipped_sums(model, tiny.batch(RECORDS))
    noise = noised - torch.cat([sums[name].flatten() for name in training.selection.parameters])
    assert float(noise.std()) == pytest.approx(2.0 * BOUND, rel=0.02)
    assert abs(float(noise.mean())) < 0.01 * BOUND


def test_gradients_are_divided_by_the_expected_batch_size_however_many_records_came() -> None:
    gradients = []
    for expected in (4, 8):
        model = model_of(train_condition_only=True)
        training = training_of(model, plan(expected_batch_size=expected))
        training.noised_gradients(model, tiny.batch(3))
        gradients.append(flat({n: p.grad for n, p in training.selection.parameters.items()}) * expected)
    assert torch.allclose(*gradients, rtol=1e-5)


def test_of_several_processes_the_first_adds_the_whole_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """What two real processes show in tests/models/test_distributed_training.py, in one."""
    monkeypatch.setattr(Ranks, "check", lambda self: None)
    parts = []
    for rank in range(2):
        model = model_of(train_condition_only=True)
        training = training_of(model, plan(noise_multiplier=2.0, insecure_seed=None))
        training.ranks = Ranks(rank, 2)
        training.noised_gradients(model, tiny.batch(0))
        parts.append(flat({name: value.grad for name, value in training.selection.parameters.items()}) * 4)
    assert float(parts[0].std()) == pytest.approx(2.0 * BOUND, rel=0.02)
    assert not parts[1].any()


def test_a_share_of_a_step_is_not_taken_for_a_whole_one() -> None:
    model = model_of(train_condition_only=True)
    training = training_of(model, plan())
    training.ranks = Ranks(0, 2)
    with pytest.raises(RuntimeError, match="shared among 2 processes as rank 0"):
        training.noised_gradients(model, tiny.batch(2))


# ---------------------------------------------------------------------- odd batches


def test_batches_of_every_size_take_one_step_each() -> None:
    model = model_of(train_condition_only=True)
    training = training_of(model, plan(), microbatch=4)
    Alone(model)
    for steps, size in enumerate((0, 1, 4, 9, 0), 1):
        training.step(model, tiny.batch(size))
        assert training.ledger.steps == steps


@pytest.mark.parametrize("cached", [False, True])
def test_an_empty_batch_moves_the_parameters_by_noise_alone(cached: bool) -> None:
    batch = {**tiny.batch(0)}
    if cached:
        del batch["image"]
        batch["moments"] = torch.zeros(0, 4, tiny.LATENT, tiny.LATENT)
    model = model_of(train_condition_only=True)
    training = training_of(model, plan())
    rows = model.expand_batch(batch, 4, None)
    assert rows["cond:class_label"].dtype == torch.int64 and {len(value) for value in rows.values()} == {0}

    optimizer = Alone(model).optimizer
    before = {name: value.detach().clone() for name, value in training.selection.parameters.items()}
    training.step(model, batch)
    assert training.ledger.steps == 1
    assert all(not torch.equal(before[name], value) for name, value in training.selection.parameters.items())
    # the same noise, written down by hand
    other = training_of(model, plan())
    sums = FlatSums(before)
    other.noise.add_(sums)
    for name, parameter in training.selection.parameters.items():
        assert torch.equal(parameter.grad, sums[name] / 4)
    assert len(optimizer.state) == len(before)


def test_a_record_that_is_not_a_number_contributes_nothing() -> None:
    model = model_of(train_condition_only=True)
    training = training_of(model, plan())
    broken = tiny.batch(RECORDS)
    rows = model.expand_batch(broken, 1, None)
    whole = {key: value.clone() for key, value in rows.items()}
    whole["z"][2] = float("nan")
    keep = [0, 1, 3]
    model.expand_batch = lambda batch, multiplicity, microbatch: whole
    with_broken = training.clipped_sums(model, {})
    model.expand_batch = lambda batch, multiplicity, microbatch: {key: value[keep] for key, value in rows.items()}
    without = training.clipped_sums(model, {})
    assert training.clipper.skipped == 1
    assert torch.isfinite(flat(with_broken)).all()
    assert torch.allclose(flat(with_broken), flat(without), atol=1e-6)


def test_the_batch_is_not_changed() -> None:
    model = model_of(train_condition_only=True)
    batch = tiny.batch(3)
    kept = {key: value.clone() for key, value in batch.items()}
    training_of(model, plan(noise_multiplicity=4)).noised_gradients(model, batch)
    assert all(torch.equal(batch[key], value) for key, value in kept.items())


# ---------------------------------------------------------------------- what is trained is what is noised


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_step_changes_the_selected_parameters_and_nothing_else(selection: str) -> None:
    kind, flags = SELECTIONS[selection]
    model = model_of(kind, **flags)
    training = training_of(model, plan())
    Alone(model)
    model.model_ema.reset(model.model)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    training.step(model, tiny.batch(RECORDS))
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == set(training.selection.parameters)
    assert changed.isdisjoint(training.selection.dead)
    moved = {
        name
        for name, shadow in model.model_ema.m_name2s_name.items()
        if not torch.equal(model.model_ema.get_buffer(shadow), before[f"model.{name}"])
    }
    assert {f"model.{name}" for name in moved} == {name for name in changed if name.startswith("model.")}


def test_every_trained_parameter_gets_a_gradient_from_records() -> None:
    """Those that get none are the dead ones, which are left out and listed."""
    model = model_of(train_condition_only=True, train_dead_parameters=True)
    training = training_of(model, plan())
    sums = training.clipped_sums(model, tiny.batch(8))
    # a bias in front of a norm with one channel a group is cancelled by it, but only in a network as narrow as this
    silent = {name for name, value in sums.items() if float(value.norm()) < 1e-6 * BOUND and "bias" not in name}
    dead = model_of(train_condition_only=True).select_trainable().dead
    assert silent == {name for name in dead if "bias" not in name}
    assert training.selection.dead == ()


# ---------------------------------------------------------------------- rule 5: what leaves


def test_the_average_follows_the_noised_weights_alone() -> None:
    model = model_of(train_condition_only=True)
    training = training_of(model, plan())
    Alone(model)
    model.model_ema.reset(model.model)
    names = model.model_ema.m_name2s_name
    before = {name: model.model_ema.get_buffer(shadow).clone() for name, shadow in names.items()}
    training.step(model, tiny.batch(RECORDS))
    weights = dict(model.model.named_parameters())
    for name, shadow in names.items():  # the first update goes 9/11 of the way
        wanted = before[name].lerp(weights[name].detach(), 9 / 11)
        assert torch.allclose(model.model_ema.get_buffer(shadow), wanted, rtol=0, atol=5e-7), name


def test_the_optimizer_remembers_noised_gradients_alone() -> None:
    model = model_of(train_condition_only=True)
    training = training_of(model, plan())
    optimizer = Alone(model).optimizer
    training.step(model, tiny.batch(RECORDS))
    assert set(optimizer.state) == set(training.selection.parameters.values())
    for parameter, state in optimizer.state.items():
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
        assert torch.allclose(state["exp_avg"], 0.1 * parameter.grad, rtol=1e-4, atol=1e-8)
        assert torch.allclose(state["exp_avg_sq"], 0.001 * parameter.grad.square(), rtol=1e-4, atol=1e-10)


def test_a_step_says_and_keeps_nothing(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither the console nor what a checkpoint holds depends on the records, but for the noised weights."""
    model = model_of(train_condition_only=True)
    model.private = training_of(model, plan(insecure_seed=None), microbatch=2)
    Alone(model)
    names = set(model.state_dict())
    buffers = {name: value.clone() for name, value in model.named_buffers() if not name.startswith("model_ema.")}
    with caplog.at_level(logging.DEBUG):
        for size in (0, 3):
            assert model.training_step(tiny.batch(size), 0) is None
    shown = capfd.readouterr()
    assert (shown.out, shown.err, caplog.messages) == ("", "", [])
    assert set(model.state_dict()) == names
    assert all(torch.equal(value, model.get_buffer(name)) for name, value in buffers.items())


def test_a_checkpoint_is_released_and_carries_the_account() -> None:
    model = model_of(train_condition_only=True)
    model.private = training = training_of(model, plan())
    model.start_privacy = {"plan": {}, "ledger": {}}
    Alone(model)
    training.step(model, tiny.batch(3))
    released: list[Any] = []
    training.on_release = released.append
    checkpoint = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    assert released == [state_digest(checkpoint["state_dict"])]
    assert checkpoint["privacy"] == {"plan": training.plan.to_dict(), "ledger": training.ledger.to_dict()}
    assert set(checkpoint) == {"state_dict", "privacy", "start_privacy"}


def test_the_latent_scale_is_not_measured_on_private_images() -> None:
    model = model_of(scale_by_std=True)
    with pytest.raises(UserError, match="a statistic of private images is not covered"):
        model.on_train_batch_start(tiny.batch(3), 0)


def test_images_of_a_private_run_follow_from_nothing_in_the_batch() -> None:
    model = model_of().eval()
    drawn = []
    for batch in (tiny.batch(1, seed=1), tiny.batch(5, seed=2), tiny.batch(0)):
        torch.manual_seed(0)
        drawn.append(model.log_images(batch, count=4, steps=2, private=True))
    for images in drawn:
        assert set(images) == {"samples"} and len(images["samples"]) == 4
        assert torch.equal(images["samples"], drawn[0]["samples"])


# ---------------------------------------------------------------------- the ledger comes first


def test_a_step_is_in_the_ledger_before_the_parameters_move() -> None:
    model = model_of(train_condition_only=True)
    training = training_of(model, plan())
    alone = Alone(model)
    seen = []
    step = alone.optimizer.step
    alone.optimizer.step = lambda: (seen.append(training.ledger.steps), step())
    training.step(model, tiny.batch(2))
    assert seen == [1]


def test_a_spent_budget_takes_no_further_step() -> None:
    model = model_of(train_condition_only=True)
    training = training_of(model, plan(steps=1))
    Alone(model)
    training.step(model, tiny.batch(2))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    with pytest.raises(UserError, match="budget is spent: 1 of 1 steps"):
        training.step(model, tiny.batch(2))
    assert training.ledger.steps == 1
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())


# ---------------------------------------------------------------------- randomness


def drawn(training: Any, model: Any) -> dict[str, Tensor]:
    """What one step draws for three records."""
    with training.draws.step(model.device):
        return model.expand_batch(tiny.batch(3), 1, None)


def test_what_a_loss_draws_does_not_follow_from_the_training_seed() -> None:
    """Else adding a record would deal out the other records' draws anew, for all who know the seed to see."""
    model = model_of(train_condition_only=True)
    runs = []
    for _ in range(2):
        torch.manual_seed(23)
        runs.append(drawn(training_of(model, plan(insecure_seed=None)), model))
    assert not torch.equal(runs[0]["noise"], runs[1]["noise"]) and not torch.equal(runs[0]["z"], runs[1]["z"])
    insecure = [drawn(training_of(model, plan()), model) for _ in range(2)]
    assert all(torch.equal(insecure[0][key], insecure[1][key]) for key in insecure[0])


def test_the_noise_of_a_secret_plan_is_secret() -> None:
    model = model_of(train_condition_only=True)
    found = [{"x": torch.zeros(8)} for _ in range(2)]
    for sums in found:
        training_of(model, plan(insecure_seed=None)).noise.add_(sums)
    assert not torch.equal(found[0]["x"], found[1]["x"])


def test_a_step_leaves_the_global_generators_as_they_were() -> None:
    model = model_of(train_condition_only=True)
    training = training_of(model, plan(insecure_seed=None))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second = drawn(training, model), drawn(training, model)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first["noise"], second["noise"])


def test_draws_have_the_distribution_they_should() -> None:
    model = model_of(train_condition_only=True)
    with training_of(model, plan(insecure_seed=None)).draws.step(model.device):
        noise, t = torch.randn(200_000), model.draw_timesteps(200_000)
    assert abs(float(noise.mean())) < 0.02 and float(noise.std()) == pytest.approx(1.0, abs=0.01)
    assert int(t.min()) == 0 and int(t.max()) == 999
    assert float(t.float().mean()) == pytest.approx(499.5, abs=5)
