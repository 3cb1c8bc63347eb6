"""The privacy room: what makes the published (epsilon, delta) of a run true by construction.

It knows no trainer, no diffusion and no configuration file, and can be reviewed alone (``docs/privacy.md``):

* ``plan``: `PrivacyPlan`, the public constants of a run
* ``sampling``: `PoissonBatchSampler`, the draws; ``randomness``: where their generators come from
* ``clipping``, ``engines`` and ``layers``: `PerRecordClipper`, one bounded contribution a record
* ``noise``: `GaussianNoise`
* ``distributed``: several processes that take one step together, each on its own shard of the records
* ``event``: `SamplingEvent`, one noised step; ``ledger``: `Ledger`, what was spent; ``accounting``: what that costs
* ``statistics``: sums of all records with noise on them, before any training
* ``card``: `ReleaseCard`, what is published
"""

from __future__ import annotations

from ldm.privacy.card import ReleaseCard
from ldm.privacy.event import SamplingEvent
from ldm.privacy.ledger import Ledger
from ldm.privacy.meter import EpsilonMeter
from ldm.privacy.noise import GaussianNoise
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.sampling import FixedSizeBatchSampler, PoissonBatchSampler

__all__ = [
    "EpsilonMeter",
    "FixedSizeBatchSampler",
    "GaussianNoise",
    "Ledger",
    "PoissonBatchSampler",
    "PrivacyPlan",
    "ReleaseCard",
    "SamplingEvent",
]
