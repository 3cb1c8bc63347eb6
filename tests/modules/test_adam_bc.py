"""`AdamBC`: Adam without noise, and the known noise taken out of the second moment with it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm.errors import UserError
from ldm.modules.adam_bc import AdamBC


def run(make, gradients) -> torch.Tensor:
    parameter = nn.Parameter(torch.zeros(4))
    optimizer = make([parameter])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def test_without_noise_it_is_adam() -> None:
    gradients = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    ours = run(lambda p: AdamBC(p, lr=0.1, betas=(0.8, 0.95)), gradients)
    theirs = run(lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.95), eps=0.0), gradients)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_the_first_steps_are_those_of_the_formula() -> None:
    ours = run(lambda p: AdamBC(p, lr=0.5, betas=(0.9, 0.99), noise_variance=0.09, floor=0.2), [torch.full((4,), 0.5)])
    assert torch.allclose(ours, torch.full((4,), -0.5 * 0.5 / (0.25 - 0.09) ** 0.5))
    low = run(lambda p: AdamBC(p, lr=0.5, betas=(0.9, 0.99), noise_variance=0.3, floor=0.2), [torch.full((4,), 0.5)])
    assert torch.allclose(low, torch.full((4,), -0.5 * 0.5 / 0.2))


def test_small_and_large_gradients_in_the_same_noise_move_alike_as_without_it() -> None:
    """Signal 0.05 and 1 in noise of 0.5: Adam lets the small one move 9 times less, AdamBC a third at most."""
    generator = torch.Generator().manual_seed(1)
    signal = torch.tensor([0.05, 0.1, 0.5, 1.0])
    gradients = signal + 0.5 * torch.randn(6000, 4, generator=generator)
    adam = run(lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.9, 0.9999)), gradients)
    ours = run(lambda p: AdamBC(p, lr=1e-3, betas=(0.9, 0.9999), noise_variance=0.25, floor=0.03), gradients)
    assert adam[0] / adam[3] < 0.15
    assert ours[0] / ours[3] > 0.3


def test_state_survives_a_checkpoint_and_mistakes_are_named() -> None:
    parameter = nn.Parameter(torch.zeros(4))
    one = AdamBC([parameter], lr=0.1, noise_variance=0.1)
    parameter.grad = torch.ones(4)
    one.step()
    other = AdamBC([parameter], lr=0.1, noise_variance=0.1)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.state[parameter]["exp_avg_sq"], one.state[parameter]["exp_avg_sq"])
    for wrong in ({"lr": -1}, {"noise_variance": -0.1}, {"betas": (1.0, 0.9)}, {"floor": 0.0}):
        with pytest.raises(UserError, match="AdamBC"):
            AdamBC([parameter], **wrong)
