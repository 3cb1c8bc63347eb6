"""`RunOptions`: the command-line options of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class RunOptions:
    """The command-line options of a run.

    ``trainer`` are Trainer arguments, ``dotlist`` settings ``key.path=value``. With ``dry_run`` all checks run and the
    plan is printed, and nothing is built, encoded, trained or written.
    """

    base: list[str]
    name: Any = ""
    resume: str = ""
    train: bool = False
    no_test: bool = False
    debug: bool = False
    seed: int = 23
    postfix: str = ""
    logdir: str = "logs"
    scale_lr: bool = True
    allow_target: list[str] = field(default_factory=list)
    dry_run: bool = False
    dotlist: list[str] = field(default_factory=list)
    trainer: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def flags(cls) -> tuple[str, ...]:
        """The options that have a flag of their own name."""
        return tuple(entry.name for entry in fields(cls) if entry.name not in ("dotlist", "trainer"))
