"""`audit_sensitivity`, called as a user would call it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from benchmarks.broken_mechanisms import BROKEN
from ldm.errors import UserError
from ldm.privacy.audit import Mechanism, audit_sensitivity
from ldm.privacy.audit.sensitivity import SensitivityResult
from ldm.privacy.clipping import Clipping, PerRecordClipper
from ldm.privacy.plan import PrivacyPlan
from tests.privacy.per_record import MixedNet, loss_of, mixed_rows


def plan(**changes: object) -> PrivacyPlan:
    values = {
        "sample_rate": 0.1,
        "steps": 3,
        "noise_multiplier": 1.0,
        "max_grad_norm": 0.1,
        "delta": 1e-5,
        "expected_batch_size": 4,
        "noise_multiplicity": 4,
    }
    return PrivacyPlan(**{**values, **changes})  # type: ignore[arg-type]


def measure(used: PrivacyPlan, mechanism: Mechanism | None = None, records: int = 6) -> SensitivityResult:
    torch.manual_seed(0)
    net = MixedNet()
    rows = mixed_rows(records * used.noise_multiplicity)
    return audit_sensitivity(net, used, loss_of(net), rows, mechanism=mechanism, batch=4)


def test_a_record_moves_the_sum_by_c() -> None:
    result = measure(plan())
    assert not result.exceeded and 0.99 < result.smallest <= result.largest <= 1 + 2e-6
    assert (result.records, result.bound) == (6, 1.0)
    assert "at most 1 C is allowed" in result.verdict()


def test_a_replaced_record_may_move_it_by_twice_c() -> None:
    result = measure(plan(relation="replace_one"))
    assert not result.exceeded and 1 < result.largest <= 2 and result.bound == 2


def test_copies_clipped_as_records_are_found() -> None:
    result = measure(plan(), BROKEN["noise draws clipped as records"])
    assert result.exceeded and result.largest > 1.5
    assert "EXCEEDED" in result.verdict() and result.to_dict()["exceeded"]


def test_a_clipper_with_another_bound_is_found() -> None:
    loose = Mechanism(clipper=lambda module, named, used: PerRecordClipper(module, named, Clipping(0.1001)))
    assert measure(plan(), loose).exceeded


def test_a_layer_that_mixes_records_is_found() -> None:
    # a network that subtracts the mean of its batch: no clipping bounds what one record changes in the others
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x - x.mean(0) * 20)

    torch.manual_seed(1)
    net = Mixing()
    rows = {"x": torch.randn(8, 5), "y": torch.randn(8, 3)}

    def loss(batch: Mapping[str, Tensor]) -> Tensor:
        return (net(batch["x"]) - batch["y"]).square().sum(1)

    assert audit_sensitivity(net, plan(noise_multiplicity=1), loss, rows).exceeded


def test_something_that_is_no_number_is_found() -> None:
    assert SensitivityResult(float("nan"), 0.0, 0, 2, 1.0, 1e-6).exceeded


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(UserError, match="5 rows were given: .* needs 4 for each of at least two records"):
        net = MixedNet()
        audit_sensitivity(net, plan(), loss_of(net), mixed_rows(5))
