"""Gradient norms of public records equal those of one backward pass a record."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from ldm.models.diffusion.timesteps import TimestepRule
from ldm.reports.gradient_norms import equalizing_weights, medians_by_timestep, record_norms, starting_model
from tests import tiny

ROOT = Path(__file__).parents[2]


class Records(Dataset):
    """The items of a collated batch, one by one."""

    def __init__(self, collated):
        self.collated = collated

    def __len__(self):
        return len(self.collated["class_label"])

    def __getitem__(self, index):
        return {key: value[index] for key, value in self.collated.items()}


def test_norms_are_those_of_single_backward_passes(monkeypatch):
    model = tiny.build(tiny.ldm(train_condition_only=True)).eval()
    tiny.scatter(model.model)
    collated = tiny.batch(5)
    rows = model.expand_batch(collated, 2, 5)
    monkeypatch.setattr(model, "expand_batch", lambda *_: rows)  # the loader draws random numbers of its own
    norms = record_norms(model, Records(collated), 5, multiplicity=2, microbatch=5)
    assert len(norms) == 5

    parameters = list(model.select_trainable().parameters.values())
    for record, norm in enumerate(norms):
        own = {key: value[2 * record : 2 * record + 2] for key, value in rows.items()}
        loss = model.per_example_losses(own).mean()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        expected = torch.stack([grad.norm() for grad in found if grad is not None]).norm()
        torch.testing.assert_close(norm, expected, rtol=1e-4, atol=0)


def test_weights_from_norms_by_timestep_make_the_norms_equal():
    torch.manual_seed(3)  # the weights of the model, the records and the noise
    model = tiny.build(tiny.ldm(train_condition_only=True)).eval()
    tiny.scatter(model.model)
    records = Records(tiny.batch(8))
    medians = medians_by_timestep(model, records, 8, 1, points=3)
    last = model.num_timesteps - 1
    assert list(medians) == [0, round(last / 2), last]
    assert max(medians.values()) > 1.2 * min(medians.values())  # else the weights would change nothing
    table = equalizing_weights(medians)
    assert min(table["values"]) == 1
    rule = TimestepRule(model.num_timesteps, table)
    assert rule.weights is not None
    own, model.timesteps = rule, rule  # weights that the configuration has already do not count
    torch.manual_seed(0)
    weighted = medians_by_timestep(model, records, 8, 1, points=3)
    model.timesteps = TimestepRule(model.num_timesteps)
    torch.manual_seed(0)
    assert weighted == pytest.approx(medians_by_timestep(model, records, 8, 1, points=3), rel=1e-5)
    assert own.weights is not None and own.weights.max() > 1.05
    equal = [norm * float(rule.weights[t]) for t, norm in medians.items()]
    torch.testing.assert_close(torch.tensor(equal), torch.full((3,), equal[0]), rtol=0.02, atol=0)


def test_adapters_are_measured_where_fine_tuning_puts_them():
    configs, checkpoint = ROOT / "configs/quickstart", ROOT / "checkpoints/glyphs32-ldm.safetensors"
    model = starting_model(configs / "finetune-lora-dp-eps10.yaml", checkpoint, torch.device("cpu"))
    plain = starting_model(configs / "finetune-dp-eps10.yaml", checkpoint, torch.device("cpu"))
    names = list(model.select_trainable().parameters)
    assert any("lora_A" in name for name in names)
    assert not any("base_layer" in name for name in names)
    latent, time, label = torch.randn(2, 8, 4, 4), torch.tensor([3, 700]), torch.tensor([1, 2])
    with torch.no_grad():
        found, expected = (
            one.apply_model(latent, time, one.get_learned_conditioning({"class_label": label}))
            for one in (model, plain)
        )
    torch.testing.assert_close(found, expected)
