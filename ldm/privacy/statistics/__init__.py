"""Statistics of private records: one noisy sum each, one ledger entry each, before any gradient is computed.

* ``query``: `SumQuery`, what a query promises, and `release`, the one way a sum leaves
* ``moments``: `ClassMoments`, count, mean and second moment of each class in public directions
* ``images``: `ClassMeanImages`; ``fourier``: `FourierEmbedding`
* ``frame``: `Frame`, the public directions
* ``gaussians``: what released moments say about the distribution of a class (post-processing)
"""

from __future__ import annotations

from ldm.privacy.statistics.fourier import FourierEmbedding
from ldm.privacy.statistics.frame import Frame
from ldm.privacy.statistics.gaussians import ClassMixture, fit_mixture
from ldm.privacy.statistics.images import ClassMeanImages
from ldm.privacy.statistics.moments import ClassMoments
from ldm.privacy.statistics.query import Release, SumQuery, release

__all__ = [
    "ClassMeanImages",
    "ClassMixture",
    "ClassMoments",
    "FourierEmbedding",
    "Frame",
    "Release",
    "SumQuery",
    "fit_mixture",
    "release",
]
