"""A plain torch model trained with differential privacy: plan, sampler, clipper, noise, ledger.

python examples/dp_sgd_mlp.py
"""

from __future__ import annotations

import torch
from torch import nn

from ldm.privacy import Clipping, GaussianNoise, Ledger, PerRecordClipper, PrivacyPlan, sampler_from_plan


def main() -> tuple[float, float]:
    """Train on 2,000 made-up records and return (accuracy in [0, 1], epsilon spent)."""
    torch.manual_seed(0)  # for initial weights and made-up data only; the sampler and the noise use secret generators
    x = torch.randn(2000, 10)
    y = (x[:, :2].prod(1) > 0).long()
    model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 2))

    plan = PrivacyPlan.calibrate(
        target_epsilon=8, delta=1e-5, batch_size=200, num_records=2000, epochs=6, max_grad_norm=1.0
    )
    parameters = dict(model.named_parameters())
    clipper = PerRecordClipper(model, parameters, Clipping(plan.max_grad_norm))
    noise, ledger = GaussianNoise(plan.noise_std), Ledger()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)

    def loss(rows: dict[str, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(model(rows["x"]), rows["y"], reduction="none")  # one loss a record

    for batch in sampler_from_plan(plan, len(x), draws=plan.steps):  # a batch may be empty
        for piece in torch.tensor(batch, dtype=torch.long).split(128):  # microbatches bound the memory
            clipper.accumulate(loss, {"x": x[piece], "y": y[piece]})
        sums = clipper.pop_sums()
        noise.add_(sums)  # once a step
        for name, parameter in parameters.items():
            parameter.grad = sums[name] / plan.expected_batch_size  # a public number, not len(batch)
        ledger.record(plan.event())  # before the parameters move
        optimizer.step()

    accuracy = float((model(x).argmax(1) == y).float().mean())
    return accuracy, ledger.epsilon(plan.delta)


if __name__ == "__main__":
    accuracy, epsilon = main()
    print(f"accuracy {accuracy:.2f} on the training records, (epsilon, delta) = ({epsilon:.2f}, 1e-05)")
