"""Statistics of private records: one noisy sum each, one ledger entry each, before any gradient is computed.

* ``query``: `SumQuery`, the interface of a query, and `release`, the only way to publish a sum
* ``moments``: `ClassMoments`, count, mean and second moment of each class in public directions
* ``images``: `ClassMeanImages`; ``fourier``: `FourierEmbedding`
* ``linear``: `fit_linear`, a linear classifier on public features, by noisy gradients of all records
* ``frame``: `Frame`, the public directions
* ``gaussians``: the distribution of a class from released moments; ``cells``: the same from moments of cells in the
  leading directions of each class; ``lloyd``: cells whose centres follow the records (post-processing)
"""

from __future__ import annotations

from ldm.privacy.statistics.cells import fit_round, leading_cells
from ldm.privacy.statistics.fourier import FourierEmbedding
from ldm.privacy.statistics.frame import Frame
from ldm.privacy.statistics.gaussians import ClassMixture, fit_mixture
from ldm.privacy.statistics.images import ClassMeanImages
from ldm.privacy.statistics.linear import LinearClassifier, LinearTraining, classifier_of, fit_linear
from ldm.privacy.statistics.lloyd import cell_groups
from ldm.privacy.statistics.moments import ClassMoments
from ldm.privacy.statistics.query import Release, SumQuery, release

__all__ = [
    "ClassMeanImages",
    "ClassMixture",
    "ClassMoments",
    "FourierEmbedding",
    "Frame",
    "LinearClassifier",
    "LinearTraining",
    "Release",
    "SumQuery",
    "cell_groups",
    "classifier_of",
    "fit_linear",
    "fit_mixture",
    "fit_round",
    "leading_cells",
    "release",
]
