"""`Ledger`: an append-only record of every noised step, from the first step of the first session on.

>>> step = SamplingEvent(sample_rate=0.01, noise_multiplier=1.0)
>>> ledger = Ledger()
>>> ledger.epsilon(delta=1e-6)
0.0
>>> for _ in range(3):
...     ledger.record(step)
>>> ledger.steps, len(ledger.events)  # three steps, one run of equal events
(3, 1)
>>> restored = Ledger.from_dict(ledger.to_dict())
>>> restored.record(step)  # a resumed session
>>> restored.covers(ledger), ledger.absorb(restored).steps  # what both hold is charged once
(True, 4)
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ldm.errors import UserError
from ldm.privacy.accounting import epsilon
from ldm.privacy.event import History, SamplingEvent
from ldm.privacy.validate import whole

_VERSION = 1


class Ledger:
    """The privacy spent: runs of equal events, grouped by the session (process) that took the steps.

    A session gets a random name when it records its first step. If two ledgers hold the same session, the shorter
    account is the beginning of the longer one; different sessions hold different steps. Therefore :meth:`absorb` is
    exact when training resumes from a checkpoint older than the last released one.

    A ledger that was read back, copied or unpickled keeps its entries and opens a new session at its next step.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, list[tuple[SamplingEvent, int]]] = {}
        self._open: str | None = None

    def record(self, event: SamplingEvent, count: int = 1) -> None:
        """Append ``count`` steps. Record a step before anything that depends on it can leave the process."""
        if not isinstance(event, SamplingEvent):
            raise TypeError(f"a ledger records SamplingEvent, got {type(event).__name__}")
        whole("count", count)
        if self._open is None:
            self._open = secrets.token_hex(8)
        _append(self._sessions.setdefault(self._open, []), event, count)

    @property
    def steps(self) -> int:
        """Number of steps taken, in all sessions."""
        return sum(count for runs in self._sessions.values() for _, count in runs)

    def count(self, event: SamplingEvent) -> int:
        """Number of steps with this ``event``, in all sessions."""
        return sum(count for runs in self._sessions.values() for other, count in runs if other == event)

    @property
    def events(self) -> History:
        """The steps in order, as (event, number of consecutive steps), without the session boundaries."""
        merged: list[tuple[SamplingEvent, int]] = []
        for runs in self._sessions.values():
            for event, count in runs:
                _append(merged, event, count)
        return tuple(merged)

    def epsilon(self, delta: float, accountant: str | None = None) -> float:
        """Epsilon at ``delta`` of everything recorded; see :func:`ldm.privacy.accounting.epsilon`."""
        return epsilon(self.events, delta, accountant)

    def covers(self, other: Ledger) -> bool:
        """Whether every step of ``other`` is also charged here."""
        return all(
            _counts(runs) <= _counts(self._sessions.get(session, [])) for session, runs in other._sessions.items()
        )

    def absorb(self, released: Ledger) -> Ledger:
        """A new ledger that charges the steps of both, each once: call it when resuming.

        ``self`` comes from the checkpoint, ``released`` from the run directory, which may charge later checkpoints of
        the same run. For a session known to both, the longer of the two accounts is taken (the shorter is its
        beginning); a session known to one is taken whole. If two accounts of one session contradict each other, both
        are charged in full. The result covers both ledgers and does not depend on their order.
        """
        result = Ledger()
        for session in [*self._sessions, *(s for s in released._sessions if s not in self._sessions)]:
            mine, theirs = self._sessions.get(session, []), released._sessions.get(session, [])
            if _counts(theirs) <= _counts(mine):
                result._sessions[session] = list(mine)
            elif _counts(mine) <= _counts(theirs):
                result._sessions[session] = list(theirs)
            else:
                runs = result._sessions[session] = list(mine)
                for event, count in theirs:
                    _append(runs, event, count)
        return result

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for a checkpoint or a file."""
        return {
            "version": _VERSION,
            "steps": self.steps,
            "entries": [
                {"session": session, "event": event.to_dict(), "count": count}
                for session, runs in self._sessions.items()
                for event, count in runs
            ],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Ledger:
        """Read :meth:`to_dict` back; raises UserError unless every key and number is in place."""
        if not isinstance(values, Mapping) or set(values) != {"version", "steps", "entries"}:
            raise UserError("the privacy ledger is damaged: expected the keys version, steps and entries")
        if values["version"] != _VERSION:
            raise UserError(f"the privacy ledger has version {values['version']!r}, this program reads {_VERSION}")
        if not isinstance(values["entries"], (list, tuple)):
            raise UserError("the privacy ledger is damaged: its entries are not a list")
        ledger = cls()
        for place, entry in enumerate(values["entries"]):
            if not isinstance(entry, Mapping) or set(entry) != {"session", "event", "count"}:
                raise UserError(f"the privacy ledger is damaged at entry {place}: expected session, event and count")
            session = entry["session"]
            if not isinstance(session, str) or not session:
                raise UserError(f"the privacy ledger is damaged at entry {place}: session is {session!r}")
            try:
                whole("count", entry["count"])
                event = SamplingEvent.from_dict(entry["event"])
            except UserError as error:
                raise UserError(f"the privacy ledger is damaged at entry {place}: {error}") from error
            _append(ledger._sessions.setdefault(session, []), event, entry["count"])
        if values["steps"] != ledger.steps:
            raise UserError(f"the privacy ledger is damaged: {values['steps']!r} steps promised, {ledger.steps} listed")
        return ledger

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ledger) and self._sessions == other._sessions

    __hash__ = None  # type: ignore[assignment]  # it grows

    def __copy__(self) -> Ledger:
        return Ledger.from_dict(self.to_dict())

    def __deepcopy__(self, memo: dict[int, Any]) -> Ledger:
        return Ledger.from_dict(self.to_dict())

    def __reduce__(self) -> tuple[Any, ...]:
        return Ledger.from_dict, (self.to_dict(),)

    def __repr__(self) -> str:
        return f"Ledger({self.steps} steps in {len(self._sessions)} sessions)"


def _append(runs: list[tuple[SamplingEvent, int]], event: SamplingEvent, count: int) -> None:
    if runs and runs[-1][0] == event:
        runs[-1] = (event, runs[-1][1] + count)
    else:
        runs.append((event, count))


def _counts(runs: list[tuple[SamplingEvent, int]]) -> Counter[SamplingEvent]:
    """How often each event happened; order is irrelevant to composition."""
    counts: Counter[SamplingEvent] = Counter()
    for event, count in runs:
        counts[event] += count
    return counts
