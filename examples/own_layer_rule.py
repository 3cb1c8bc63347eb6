"""A layer unknown to the clipper, with a rule for the per-record gradients of its parameters.

python examples/own_layer_rule.py
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm.privacy import DEFAULT_RULES, Clipping, Contribution, LayerRule, Materialized, PerRecordClipper


class Scale(nn.Module):
    """Multiplies each of ``width`` features by a number of its own: (R, ..., width) -> the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, input: Tensor) -> Tensor:
        return input * self.weight


class ScaleRule(LayerRule):
    """The gradient of feature j in one row is input times output gradient, summed over everything but row and j."""

    kinds = (Scale,)
    names = frozenset({"weight"})

    def contribution(
        self, module: nn.Module, inputs: Tensor, grad: Tensor, records: int, wanted: Sequence[str]
    ) -> Contribution:
        products = inputs.float() * grad.float()
        by_row = products.flatten(1, -2).sum(1) if products.dim() > 2 else products
        return Materialized([by_row.unflatten(0, (records, -1)).sum(1)])  # a record owns several rows


def main() -> float:
    """Verify the rule on made-up records, and return the norm of one record's clipped gradient, at most C = 0.5."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), Scale(4), nn.Linear(4, 2))
    parameters = dict(model.named_parameters())
    clipper = PerRecordClipper(model, parameters, Clipping(0.5), rules={**DEFAULT_RULES, Scale: ScaleRule()})

    def loss(rows: dict[str, Tensor]) -> Tensor:
        return 50 * model(rows["x"]).square().sum(1)

    rows = {"x": torch.randn(8, 6)}
    clipper.verify(loss, rows, multiplicity=2)  # raises if the rule is not the gradient
    clipper.accumulate(loss, {"x": rows["x"][:2]}, multiplicity=2)  # one record with two noise draws
    return float(torch.cat([total.flatten() for total in clipper.pop_sums().values()]).norm())


if __name__ == "__main__":
    print(f"the record moves the sum by {main():.6f}, at most 0.5")
