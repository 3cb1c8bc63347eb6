"""What each process of test_distributed_training.py does; the processes import this module, not the test."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ldm.errors import UserError
from ldm.models.diffusion.finetuning import Selection
from ldm.models.diffusion.private_training import PrivateTraining
from ldm.privacy.distributed import broadcast_state, check_agreement, reduce_sums
from ldm.privacy.ledger import Ledger
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.ranks import Ranks
from ldm.privacy.sampling import sampler_from_plan

RECORDS, STEPS, QUIET_STEPS = 15, 8, 300
BATCH = 3


class Net(nn.Module):
    """Two layers with the parts of a diffusion model that `PrivateTraining` talks to."""

    device = torch.device("cpu")

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)

    def expand_batch(self, batch: Mapping[str, Tensor], multiplicity: int, microbatch: int | None) -> dict[str, Tensor]:
        examples = {key: value.repeat_interleave(multiplicity, dim=0) for key, value in batch.items()}
        return {**examples, "t": torch.arange(len(examples["x"]))}

    def per_example_losses(self, examples: Mapping[str, Tensor]) -> Tensor:
        return (self.second(torch.tanh(self.first(examples["x"]))) - examples["y"]).square().sum(1)

    def example_batch(self, records: int) -> None:
        return None

    def optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer

    def lr_schedulers(self) -> None:
        return None

    def average_weights(self) -> None:
        pass


def plan(**changes: Any) -> PrivacyPlan:
    values = {
        "sample_rate": BATCH / RECORDS,
        "steps": 1000,
        "noise_multiplier": 1.0,
        "max_grad_norm": 0.5,
        "delta": 1e-5,
        "expected_batch_size": BATCH,
        **changes,
    }
    return PrivacyPlan(**values)


#: No noise to speak of, and noise that anyone can repeat: in both cases one process takes exactly the same steps.
QUIET = plan(noise_multiplier=1e-9, insecure_seed=4)
REPEATABLE = plan(insecure_seed=4)
SECRET = plan()


def training(net: Net, plan: PrivacyPlan, ranks: Ranks | None = None) -> PrivateTraining:
    result = PrivateTraining(net, Selection(dict(net.named_parameters())), plan, Ledger(), max_batch_size=2)
    result.ranks = ranks or Ranks()
    return result


def pick(indices: list[int]) -> dict[str, Tensor]:
    """Records of a data set that is the same for everyone; some gradients are below the bound, most above it."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(RECORDS, 4, generator=generator), torch.randn(RECORDS, 3, generator=generator)
    return {"x": x[indices], "y": y[indices]}


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def take_steps(plan: PrivacyPlan, ranks: Ranks) -> dict[str, Any]:
    """Some steps on seeded draws: the draws, the parameters after each step, and the ledger."""
    net = Net()
    private = training(net, plan, ranks)
    private.begin()
    draws, parameters = [], []
    for indices in sampler_from_plan(plan, RECORDS, draws=STEPS, ranks=ranks):
        private.step(net, pick(indices))
        draws.append(indices)
        parameters.append(flat(net.parameters()))
    return {"draws": draws, "parameters": torch.stack(parameters), "ledger": private.ledger.to_dict()}


def pure_noise(ranks: Ranks) -> Tensor:
    """The gradients of steps without records, times the batch size: noise alone."""
    net = Net()
    private = training(net, SECRET, ranks)
    found = []
    for _ in range(QUIET_STEPS):
        private.noised_gradients(net, pick([]))
        found.append(flat(parameter.grad for parameter in net.parameters()) * BATCH)
    return torch.stack(found)


def message(call: Any) -> str:
    """What a call is refused with."""
    try:
        call()
    except (UserError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def work(rank: int, world: int, folder: str) -> None:
    """Everything that one process does; the results go to ``folder``."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{folder}/group", timeout=timedelta(seconds=120), world_size=world, rank=rank
    )
    ranks = Ranks(rank, world)
    other_start = Net(seed=rank)
    broadcast_state(other_start)
    ahead = training(Net(), REPEATABLE, ranks)
    if rank == 1:
        ahead.ledger.record(REPEATABLE.event())
    alone = Net()
    result = {
        "quiet": take_steps(QUIET, ranks),
        "repeatable": take_steps(REPEATABLE, ranks),
        "noise": pure_noise(ranks),
        "start": flat(other_start.parameters()),
        "disagree": message(lambda: check_agreement(f"rank {rank}")),
        "ahead": message(ahead.begin),
        "unshared": message(lambda: training(alone, SECRET).noised_gradients(alone, pick([0]))),
        "half": message(lambda: reduce_sums({"weight": torch.zeros(2, dtype=torch.bfloat16)})),
    }
    torch.save(result, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()
