"""`SamplingEvent`: one noised step as an accountant sees it, with checks of its public constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ldm.errors import UserError
from ldm.privacy.validate import number, one_of

ADD_OR_REMOVE_ONE = "add_or_remove_one"
REPLACE_ONE = "replace_one"
RELATIONS = (ADD_OR_REMOVE_ONE, REPLACE_ONE)

POISSON = "poisson"
WITHOUT_REPLACEMENT = "without_replacement"
SAMPLINGS = (POISSON, WITHOUT_REPLACEMENT)


def sensitivity(max_grad_norm: float, relation: str = ADD_OR_REMOVE_ONE) -> float:
    """Largest change of a sum of gradients, each clipped to ``max_grad_norm`` C, by one record, in L2 norm.

    C when the record is added or removed, 2C when it is replaced by another. Raises UserError for an unknown relation.
    """
    one_of("relation", relation, RELATIONS)
    return max_grad_norm * (2 if relation == REPLACE_ONE else 1)


@dataclass(frozen=True)
class SamplingEvent:
    """One noised step as an accountant sees it; public constants only.

    ``sample_rate`` in (0, 1]: the chance of a record to be in the batch (``poisson``: independent of the others;
    ``without_replacement``: batch size over number of records). ``noise_multiplier``: noise standard deviation over the
    L2 sensitivity of the clipped sum *under* ``relation``, which is C for add/remove and 2C for replace-one.

    Raises UserError for values out of range, and for a batch of fixed size under add/remove. Adding a record would
    change the other records' chances, so the analysis exists for replace-one only.
    """

    sample_rate: float
    noise_multiplier: float
    sampling: str = POISSON
    relation: str = ADD_OR_REMOVE_ONE

    def __post_init__(self) -> None:
        number("sample_rate", self.sample_rate, above=0, at_most=1)
        number("noise_multiplier", self.noise_multiplier, above=0)
        one_of("sampling", self.sampling, SAMPLINGS)
        one_of("relation", self.relation, RELATIONS)
        if self.sampling == WITHOUT_REPLACEMENT and self.relation != REPLACE_ONE:
            raise UserError(
                f"sampling: {WITHOUT_REPLACEMENT} has no analysis under relation: {self.relation}; "
                f"write relation: {REPLACE_ONE}, or sampling: {POISSON}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplingEvent:
        """Read :meth:`to_dict` back; raises UserError when a key is missing or unknown."""
        names = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping) or sorted(values) != sorted(names):
            raise UserError(f"a sampling event needs exactly the keys {', '.join(names)}, found {values!r}")
        return cls(**values)


#: Pairs of an event and its count.
History = Sequence[tuple[SamplingEvent, int]]
