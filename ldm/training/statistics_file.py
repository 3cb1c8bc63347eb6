"""The file of released statistics (``statistics.ckpt``): the releases, and the plan and ledger that charge them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.checkpoint import read_checkpoint, save_checkpoint
from ldm.errors import UserError
from ldm.privacy.event import History, SamplingEvent
from ldm.privacy.ledger import Ledger
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.statistics import Release


def save_releases(
    path: Path, plan: PrivacyPlan, ledger: Ledger, releases: list[Release], planned: History = ()
) -> None:
    """Write the releases, the plan and the ledger that charges them into one file, atomically.

    ``planned``: the events of all releases of the run, those that are still to come included. Raises UserError when
    the file at ``path`` charges what ``ledger`` does not: another process releases the same statistics.
    """
    require_own(path, ledger)
    state = {f"{place}.{name}": value for place, item in enumerate(releases) for name, value in item.sums.items()}
    facts = [{**item.to_dict(), "sums": sorted(item.sums)} for item in releases]
    account = {"plan": plan.to_dict(), "ledger": ledger.to_dict()}
    events = [{"event": event.to_dict(), "count": count} for event, count in planned]
    save_checkpoint({"state_dict": state, "privacy": account, "releases": facts, "planned": events}, path)


def require_own(path: Path, ledger: Ledger) -> None:
    """Raise UserError when the file at ``path`` holds releases that ``ledger`` does not charge.

    Two processes in one folder would each answer the queries with noise of its own, and charge its own answers only.
    """
    if path.is_file() and not ledger.covers(Ledger.from_dict(load_releases(path)[0]["ledger"])):
        raise UserError(f"{path}: another process has released these statistics meanwhile; let it end, then --resume")


def require_planned(path: Path, planned: History) -> None:
    """Raise UserError when the releases at ``path`` were begun with other noise for them or for those to come.

    The noise of the steps was calibrated for what was planned then.
    """
    if not path.is_file():
        return
    stored = read_checkpoint(path).get("planned")
    if stored is None:  # by a version that did not store it
        return
    before = [(SamplingEvent.from_dict(entry["event"]), int(entry["count"])) for entry in stored]
    if before != list(planned):
        stored_noise, noise = (
            ", ".join(f"{event.noise_multiplier:g}" for event, _ in each) for each in (before, planned)
        )
        raise UserError(
            f"{path}: the run was planned with noise multipliers {stored_noise} of its statistics, the config now says "
            f"{noise}; a run keeps its plan"
        )


def load_releases(path: Path) -> tuple[dict[str, Any], list[Release]]:
    """The account and the releases of `save_releases`. Raises UserError for another or damaged file."""
    content = read_checkpoint(path)
    facts, state = content.get("releases"), content["state_dict"]
    if not isinstance(facts, list) or not isinstance(content.get("privacy"), Mapping):
        raise UserError(f"{path}: holds no released statistics")
    releases = []
    for place, item in enumerate(facts):
        names = item.get("sums", [])
        if any(f"{place}.{name}" not in state for name in names):
            raise UserError(f"{path}: the sums of release {place} are missing; the file is damaged")
        releases.append(Release.from_dict({**item, "sums": {name: state[f"{place}.{name}"] for name in names}}))
    return dict(content["privacy"]), releases
