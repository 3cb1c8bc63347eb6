"""Learning-rate factors: equal to the public code, defined past the last cycle, plain in checkpoints."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from ldm.errors import UserError
from ldm.lr_scheduler import LambdaLinearScheduler, LambdaWarmUpCosineScheduler2
from tests import parity

CYCLES = dict(
    warm_up_steps=[50, 20], cycle_lengths=[200, 300], f_start=[0.001, 0.1], f_max=[1.0, 0.5], f_min=[0.01, 0.05]
)


@pytest.mark.parametrize("entry", parity.entries("lr"), ids=parity.name)
def test_factors(entry):
    scheduler = parity.find_class(entry)(**entry["params"])
    inputs, _ = parity.io(entry)
    got = torch.tensor([scheduler.schedule(int(n)) for n in inputs["steps"]], dtype=torch.float64)
    parity.check("f", got, entry)


@pytest.mark.parametrize("kind", [LambdaLinearScheduler, LambdaWarmUpCosineScheduler2])
def test_stays_at_the_last_value_after_the_last_cycle(kind):
    scheduler = kind(**CYCLES)
    assert scheduler(500) == pytest.approx(0.05)
    assert scheduler(501) == scheduler(10**9) == scheduler(500)


@pytest.mark.parametrize("kind", [LambdaLinearScheduler, LambdaWarmUpCosineScheduler2])
def test_lists_of_different_length_are_refused(kind):
    with pytest.raises(UserError, match="one entry per cycle"):
        kind(**{**CYCLES, "f_min": [0.0]})


def test_works_in_lambda_lr_with_yaml_lists_and_keeps_plain_state():
    scheduler = LambdaLinearScheduler(**OmegaConf.create(CYCLES))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scheduler)
    assert schedule.get_last_lr() == pytest.approx([2.0 * 0.001])
    kinds = {type(value) for value in schedule.state_dict()["lr_lambdas"][0].values()}
    assert kinds == {list, int}


def test_logs_only_every_interval(caplog):
    scheduler = LambdaLinearScheduler(**CYCLES, verbosity_interval=10)
    with caplog.at_level("INFO", logger="ldm.lr_scheduler"):
        for n in range(1, 21):
            scheduler(n)
    assert [record.args[0] for record in caplog.records] == [10, 20]
