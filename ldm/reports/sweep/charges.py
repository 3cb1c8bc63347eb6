"""Plans under which several runs on the same private records have one epsilon.

* `compose`: all runs are kept. Each is charged with all others, also those that are trained later, from its first
  checkpoint on; the noise is the least with which all of them together meet the target.
* `select`: the best of a random number of runs is kept, and the noise is the least with which that meets the target.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.config import load_config, section_at, to_plain
from ldm.errors import UserError
from ldm.privacy.account import epsilon_of
from ldm.privacy.accounting import joint_epsilon, least_noise
from ldm.privacy.card import ReleaseCard
from ldm.privacy.event import History
from ldm.privacy.ledger import Ledger
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.selection import Selection
from ldm.reports.budget import PlannedRun
from ldm.reports.sweep.grid import Setting
from ldm.training.run_account import read_others

DP = "model.params.dp_config"


def compose(base: Path, grid: Sequence[Setting], folder: Path) -> list[list[str]]:
    """The further settings of each run, after writing the accounts that the runs are charged with into ``folder``.

    ``base`` is the configuration; its other private runs (``dp_config.other_runs``) are charged too. Raises UserError
    for a target that cannot be met, and for settings that differ in delta.
    """
    runs = [PlannedRun.read(base, setting) for setting in grid]
    first = runs[0].dp
    delta, target = first.delta, first.epsilon
    if delta is None or any(run.dp.delta != delta for run in runs):
        raise UserError(f"{base}: all runs of a sweep need one dp_config.delta")
    others = [account.spending for account in read_others(first.other_runs)]

    def spent(sigma: float) -> float:
        return joint_epsilon([*others, *(run.spending(run.plan(sigma)) for run in runs)], delta)

    sigma = least_noise(spent, target) if target is not None else first.noise_multiplier
    if sigma is None:
        raise UserError(f"{base}: dp_config needs epsilon or noise_multiplier")
    files = [folder / f"{number:02d}.json" for number in range(1, len(grid) + 1)]
    for run, path in zip(runs, files, strict=True):
        planned_card(run.plan(sigma), run.before).write(path)
    overrides = []
    for number in range(len(grid)):
        charged = [*first.other_runs, *(str(path.resolve()) for place, path in enumerate(files) if place != number)]
        overrides.append(
            [f"{DP}.epsilon=null", f"{DP}.noise_multiplier={sigma!r}", f"{DP}.other_runs={json.dumps(charged)}"]
        )
    return overrides


def planned_card(plan: PrivacyPlan, before: History = ()) -> ReleaseCard:
    """The card of a run as if all its steps had been taken: what other runs are charged for it."""
    ledger = Ledger()
    for event, count in [*before, (plan.event(), plan.steps)]:
        ledger.record(event, count)
    return ReleaseCard(plan, ledger, statistics=({"name": "planned"},) * sum(count for _, count in before))


def total_epsilon(folder: Path, base: Path) -> float:
    """Epsilon of all planned runs together, from their files, with the other runs of the configuration."""
    cards = [ReleaseCard.read(path) for path in sorted(folder.glob("*.json"))]
    config = section_at(load_config([base]), "model.params.dp_config", base)
    others = read_others([str(path) for path in config.get("other_runs") or ()])
    return epsilon_of([*others, *(card.account for card in cards)], cards[0].plan.delta)


def select(base: Path, grid: Sequence[Setting], selection: Selection) -> list[str]:
    """The further settings of every run of a selection.

    Raises UserError for settings that change the mechanism, because the guarantee of the best covers runs whose own
    guarantees are the same, and for a configuration without a target epsilon or noise multiplier.
    """
    words = [f"{DP}.selection.eta={selection.eta!r}", f"{DP}.selection.gamma={selection.gamma!r}"]
    plans = [PlannedRun.read(base, [*setting, *words]).plan() for setting in grid]
    for setting, plan in zip(grid, plans, strict=True):
        if (plan.event(), plan.steps, plan.delta) != (plans[0].event(), plans[0].steps, plans[0].delta):
            raise UserError(
                f"--try {' '.join(setting)}: changes the sampling rate, the steps or the noise; a selection needs one "
                "mechanism for all runs: keep batch_size and max_steps, or type --charge composition"
            )
    return words


def private_set(base: Path) -> dict[str, Any]:
    """The ``data.params.train`` node of a configuration. Raises UserError without one."""
    node = to_plain(load_config([base]).get("data", {})).get("params", {}).get("train")
    if not isinstance(node, dict):
        raise UserError(f"{base}: data.params has no train set")
    return node
