"""The privacy package, which makes the published (epsilon, delta) of a run true by construction.

It depends on no trainer, diffusion model or configuration file, and can be reviewed alone (``docs/privacy.md``).
``examples/dp_sgd_mlp.py`` trains a plain torch model with it. In the order of a step:

* ``plan``: `PrivacyPlan`, the public constants of a run
* ``sampling``: `sampler_from_plan` makes `PoissonBatchSampler` and the other samplers; ``randomness``: their
  generators; ``ranks`` and ``distributed``: several processes that take one step together
* ``clipping``: `PerRecordClipper` with a rule, `Clipping`, bounds each record's contribution; ``engines``: fast ways to
  compute it; `LayerRule`, `Contribution`, `Materialized` and `DEFAULT_RULES`: support for your own layers
* ``noise``: `GaussianNoise`
* ``event``: `SamplingEvent`, one noised step; ``ledger``: `Ledger`, all steps taken; ``accounting``: their epsilon;
  ``meter``: `EpsilonMeter`, the epsilon so far
* ``statistics``: sums of all records with noise on them, before any training
* ``card``: `ReleaseCard`, the published guarantee
* ``audit``: lower bounds measured on the running mechanism (imported by its own name)

Names are loaded when they are used, so that a program that only reads a plan does not load the accountants.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.privacy.accounting import calibrate, epsilon
    from ldm.privacy.card import ReleaseCard
    from ldm.privacy.clipping import Clipping, PerRecordClipper
    from ldm.privacy.engines.layers import DEFAULT_RULES, Contribution, LayerRule, Materialized
    from ldm.privacy.event import SamplingEvent, sensitivity
    from ldm.privacy.ledger import Ledger
    from ldm.privacy.meter import EpsilonMeter
    from ldm.privacy.noise import GaussianNoise
    from ldm.privacy.plan import PrivacyPlan
    from ldm.privacy.ranks import Ranks
    from ldm.privacy.sampling import FixedSizeBatchSampler, PoissonBatchSampler, ShardedBatchSampler, sampler_from_plan

_HOMES = {
    "Clipping": "clipping",
    "Contribution": "engines.layers",
    "DEFAULT_RULES": "engines.layers",
    "EpsilonMeter": "meter",
    "FixedSizeBatchSampler": "sampling",
    "GaussianNoise": "noise",
    "LayerRule": "engines.layers",
    "Ledger": "ledger",
    "Materialized": "engines.layers",
    "PerRecordClipper": "clipping",
    "PoissonBatchSampler": "sampling",
    "PrivacyPlan": "plan",
    "Ranks": "ranks",
    "ReleaseCard": "card",
    "SamplingEvent": "event",
    "ShardedBatchSampler": "sampling",
    "calibrate": "accounting",
    "epsilon": "accounting",
    "sampler_from_plan": "sampling",
    "sensitivity": "event",
}

__all__ = [
    "DEFAULT_RULES",
    "Clipping",
    "Contribution",
    "EpsilonMeter",
    "FixedSizeBatchSampler",
    "GaussianNoise",
    "LayerRule",
    "Ledger",
    "Materialized",
    "PerRecordClipper",
    "PoissonBatchSampler",
    "PrivacyPlan",
    "Ranks",
    "ReleaseCard",
    "SamplingEvent",
    "ShardedBatchSampler",
    "calibrate",
    "epsilon",
    "sampler_from_plan",
    "sensitivity",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
