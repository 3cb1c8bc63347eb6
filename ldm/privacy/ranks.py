"""`Ranks`: the rank of this process among several."""

from __future__ import annotations

from dataclasses import dataclass

from torch import distributed

from ldm.errors import UserError
from ldm.privacy.validate import whole


@dataclass(frozen=True)
class Ranks:
    """The ``rank`` of this process, in [0, size), among the ``size`` processes of a run; by default one process.

    Raises UserError for a rank outside this range.
    """

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        whole("number of processes", self.size)
        whole("rank", self.rank, at_least=0)
        if self.rank >= self.size:
            raise UserError(f"rank {self.rank} does not exist among {self.size} processes, counted from 0")

    @property
    def first(self) -> bool:
        """Whether this process adds the noise and writes the files."""
        return self.rank == 0

    def check(self) -> None:
        """Raise RuntimeError unless these are the processes that torch.distributed connects.

        Otherwise a process could draw the records of another one, or would not sum its part with the others.
        """
        found = group_ranks()
        if found != self:
            raise RuntimeError(
                f"this private run was shared among {self.size} processes as rank {self.rank}, but torch.distributed "
                f"has {found.size} and calls this one {found.rank}"
            )


def group_ranks() -> Ranks:
    """The processes that torch.distributed connects now; a single process when it connects none."""
    if distributed.is_available() and distributed.is_initialized():
        return Ranks(distributed.get_rank(), distributed.get_world_size())
    return Ranks()
