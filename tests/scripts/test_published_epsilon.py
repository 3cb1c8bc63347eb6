"""The published runs' provable epsilon, against the values computed with the published code's accountant."""

from __future__ import annotations

import pytest

from ldm.privacy.accounting import epsilon
from ldm.privacy.event import SamplingEvent
from scripts import published_epsilon
from scripts.published_epsilon import SETTINGS, Setting, proved
from tests.tiny_runs import Commands, commands

__all__ = ["commands"]

EXPECTED = {  # setting -> claimed epsilon -> published sigma, provable epsilon
    "mnist": {1: (9.775, 30.9), 5: (2.427, 2240), 10: (1.472, 7698)},
    "cifar10": {5: (0.563, 3958), 10: (0.474, 5689)},
    "celeba32": {1: (3.911, 2.3), 5: (1.173, 22.9), 10: (0.826, 59.3)},
    "celeba32-k4": {10: (0.826, 377)},
    "celeba64": {1: (4.414, 6.3), 5: (1.263, 136), 10: (0.875, 353)},
    "celebahq-24000": {1: (3.645, 7.7), 5: (1.141, 117), 10: (0.801, 269)},
    "celebahq": {1: (3.389, 8.2), 5: (1.087, 129), 10: (0.773, 289)},
    "celebahq-k2": {1: (3.389, 2.4), 5: (1.087, 22.8), 10: (0.773, 53.4)},
    "celebahq-k8": {10: (0.773, 1298)},
}
CHEAP = (("celebahq-k2", 10), ("celebahq", 10))
ROWS = [
    pytest.param(name, claimed, marks=() if (name, claimed) in CHEAP else pytest.mark.slow)
    for name, row in EXPECTED.items()
    for claimed in row
]


def named(name: str) -> Setting:
    return next(setting for setting in SETTINGS if setting.name == name)


def test_every_setting_has_expected_values() -> None:
    assert [setting.name for setting in SETTINGS] == list(EXPECTED)


@pytest.mark.parametrize(("name", "claimed"), ROWS)
def test_noise_and_provable_epsilon_are_the_references(name: str, claimed: int) -> None:
    sigma, _, _, found = proved(named(name), claimed)
    expected_sigma, expected = EXPECTED[name][claimed]
    assert sigma == pytest.approx(expected_sigma, rel=0.002)
    assert found == pytest.approx(expected, rel=0.02)


def test_one_copy_proves_what_is_claimed_and_more_copies_prove_less() -> None:
    sigma, rate, steps, found = proved(Setting("one", 10_000, 1000, 2, 1e-5, 1), 3.0)
    assert 0.98 * 3.0 <= found <= 3.0
    two = epsilon([(SamplingEvent(rate, sigma / 2), steps)], 1e-5)
    assert two > 2 * found


def test_the_table_shows_rate_steps_and_both_epsilons(commands: Commands) -> None:
    own = "--num_records 10000 --batch_size 1000 --epochs 2 --delta 1e-5 --copies 2 --epsilon 3"
    assert commands.type(published_epsilon.main, *own.split()) == 0
    heading, row = commands.out.splitlines()
    found = dict(zip(heading.split(), row.split(), strict=True))
    assert (found["rate"], found["steps"], found["K"], found["claimed"]) == ("1/10", "20", "2", "3")
    assert float(found["proved"]) > 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--setting imagenet", "invalid choice"),
        ("--copies 4", "type all of --num_records"),
        ("--num_records 10 --batch_size 2 --epochs 1 --delta 1e-3 --copies 0", "at least one noise draw"),
    ],
)
def test_nonsense_is_refused(words: str, message: str, commands: Commands) -> None:
    assert message in commands.refused(published_epsilon.main, *words.split())
