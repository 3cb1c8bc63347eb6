"""A feature extractor whose work is shared out among several processes."""

from __future__ import annotations

from torch import Tensor

from ldm.evaluation.features.base import Classifying, FeatureExtractor
from ldm.evaluation.processes import Processes


class SharedExtractor:
    """``extractor``, with the images of every call divided among the processes; all of them get all features."""

    def __init__(self, extractor: FeatureExtractor, processes: Processes) -> None:
        self.name, self.dim = extractor.name, extractor.dim
        self.resize, self.weights = extractor.resize, extractor.weights
        self._extractor, self._processes = extractor, processes

    def __call__(self, images: Tensor) -> Tensor:
        return self._processes.rows(self._extractor, images)


class SharedClassifying(SharedExtractor):
    """The same for an extractor that has class logits, too; they cost little and are not shared out."""

    def __init__(self, extractor: FeatureExtractor, processes: Processes, classifying: Classifying) -> None:
        super().__init__(extractor, processes)
        self._classifying = classifying

    def logits(self, features: Tensor) -> Tensor:
        """Logits (N, classes) from the features (N, dim)."""
        return self._classifying.logits(features)


def shared(extractor: FeatureExtractor, processes: Processes) -> FeatureExtractor:
    """``extractor`` for these processes; as it is for a process on its own."""
    if processes.size == 1:
        return extractor
    if isinstance(extractor, Classifying):
        return SharedClassifying(extractor, processes, extractor)
    return SharedExtractor(extractor, processes)
