"""`PlantedBug`: one mistake that would break the privacy guarantee, and the fast test that must notice it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: What makes the published (epsilon, delta) true by construction.
RULES = {
    1: "one trainer batch is one Poisson draw",
    2: "a record is one row for the clipper, and contributes at most C",
    3: "one plan feeds sampler, clipper, noise and ledger",
    4: "the ledger travels with the weights",
    5: "nothing computed from private images leaves except through the mechanism",
    6: "secrets are secret and fresh",
}


@dataclass(frozen=True)
class PlantedBug:
    """A change of one place in one file, and the test that fails with it.

    ``file`` is relative to the project's root, ``old`` occurs in it exactly once and becomes ``new``. ``rule`` is the
    number of the one of `RULES` that is broken, ``why`` says how. ``test`` is a pytest node, e.g.
    ``tests/privacy/test_noise.py::test_it_says_whether_it_is_secret``; it is not marked slow.
    """

    name: str
    rule: int
    file: str
    old: str
    new: str
    why: str
    test: str

    def changed(self, root: Path) -> str:
        """The text of the file with the bug in it. Raises ValueError unless ``old`` is there exactly once."""
        text = (root / self.file).read_text(encoding="utf-8")
        found = text.count(self.old)
        if found != 1:
            raise ValueError(f"{self.name}: the old text occurs {found} times in {self.file}, not once; mend the table")
        return text.replace(self.old, self.new)
