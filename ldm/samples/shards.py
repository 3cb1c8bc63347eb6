"""`Shard`: the part of a job that one of several processes does, and the merge of the parts by the last of them.

The processes share a folder and nothing else: no port, no process group, no time limit. So the same code serves
torchrun, srun, the tasks of a SLURM array that start hours apart, and the second attempt of one that was stopped.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.errors import UserError


@dataclass(frozen=True)
class Shard:
    """Part ``index`` in [0, count) of a job in ``count`` parts; by default the whole job."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise UserError(f"part {self.index + 1} of {self.count} does not exist; parts are 1/4 2/4 3/4 4/4")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``2/8``, the second of eight parts. Raises UserError."""
        first, _, second = text.partition("/")
        try:
            index, count = int(first), int(second)
        except ValueError:
            raise UserError(f"--shard {text}: is no part of a job; type 1/4 for the first of four parts") from None
        return cls(index - 1, count)

    @classmethod
    def here(cls, text: str | None = None) -> Shard:
        """The part that ``text`` names, else that of this process under torchrun, else the whole job."""
        if text is not None:
            return cls.parse(text)
        rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
        return cls(int(rank), int(size)) if rank.isdecimal() and size.isdecimal() else cls()

    @property
    def whole(self) -> bool:
        """Whether one process does all the work."""
        return self.count == 1

    @property
    def first(self) -> bool:
        """Whether this process reports progress."""
        return self.index == 0

    def part(self, total: int) -> range:
        """The items of this part among ``total``: contiguous, all parts together are all items, sizes differ by 1."""
        return range(self.index * total // self.count, (self.index + 1) * total // self.count)

    def files(self, output: Path) -> list[Path]:
        """The files of all parts, beside ``output``."""
        names = (f"{output.stem}.part-{number + 1}-of-{self.count}{output.suffix}" for number in range(self.count))
        return [output.with_name(name) for name in names]


#: The whole job, in one process.
WHOLE = Shard()


def merge_when_complete(output: Path, parts: Sequence[Path], merge: Callable[[Sequence[Path]], None]) -> bool:
    """If all ``parts`` are there, let one process merge them into ``output`` and delete them; whether this one did.

    ``merge`` must write ``output`` atomically: a process that is stopped in it leaves the parts for the next one.
    """
    if not all(part.is_file() for part in parts):
        return False
    with _only_process(output.with_name(f".{output.name}.merge")):
        if not all(part.is_file() for part in parts):  # another process has merged them in the meantime
            return False
        merge(parts)
        for part in parts:
            part.unlink()
    return True


@contextlib.contextmanager
def _only_process(path: Path) -> Iterator[None]:
    """Run the body in one process at a time, if the system has file locks; a lock ends with its process."""
    with path.open("w") as file:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
