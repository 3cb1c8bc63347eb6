"""Gradient norms of public records equal those of one backward pass a record."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from ldm.gradient_norms import record_norms
from tests import tiny


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
    rows = model.private_rows(collated, 2, 5)
    monkeypatch.setattr(model, "private_rows", lambda *_: rows)  # the loader draws random numbers of its own
    norms = record_norms(model, Records(collated), 5, copies=2, chunk=5)
    assert len(norms) == 5

    parameters = list(model.select_trainable().parameters.values())
    for record, norm in enumerate(norms):
        own = {key: value[2 * record : 2 * record + 2] for key, value in rows.items()}
        loss = model.row_losses(own).mean()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        expected = torch.stack([grad.norm() for grad in found if grad is not None]).norm()
        torch.testing.assert_close(norm, expected, rtol=1e-4, atol=0)
