"""`GaussianNoise`: the noise of the mechanism, in float32, from generators used for nothing else.

**Guarantee.** Every call of :meth:`GaussianNoise.add_` adds to every coordinate of every tensor one number from
N(0, std^2), independent of all other coordinates, tensors and steps. It is drawn in float64. (The tail is exact on a
CPU; on a GPU it ends beyond 8.5 std, a chance of 2^-53.)

===============================================  ===================================================================
case                                             what happens
===============================================  ===================================================================
sums of zeros (an empty batch)                   noise is added; a step without records looks like any other
a sum in half precision                          refused before anything is noised; rounded noise is not Gaussian
a sum that is not contiguous, or a scalar        every coordinate gets its own number
no tensors at all                                nothing is added; the step counts
the order in which names are given               has no effect; noise is added in the order of sorted names
the sums of a step in one flat tensor            one addition to all of it (`FlatSums`)
several computing threads                        each has a secret generator of its own, and a part of the numbers
a seed that others know (``insecure_seed``)      reproducible, ``secure`` is False; the run is not private
===============================================  ===================================================================

>>> noise = GaussianNoise(std=2.0)
>>> sums = {"weight": torch.zeros(100, 100)}
>>> noise.add_(sums)
>>> 1.9 < float(sums["weight"].std()) < 2.1
True
>>> noise.steps, noise.secure
(1, True)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.privacy.randomness import NOISE, NormalStream, device_generator, secret_generator, seeded_generator
from ldm.privacy.sums import whole_tensors
from ldm.privacy.validate import number, whole

_MOST_THREADS = 16
_FEWEST_FOR_THREADS = 1 << 17  # numbers (about 1 ms) below which starting threads does not pay

_GPU_BLOCK = 1 << 22  # float64 numbers made at once on a GPU: 32 MB


class GaussianNoise:
    """Adds independent N(0, std^2) noise to every coordinate of a step's clipped sums (Abadi et al. 2016, algorithm 1).

    ``std`` > 0 is an absolute standard deviation (:attr:`PrivacyPlan.noise_std`). Numbers come from one generator a
    device, seeded by the operating system and never saved; with ``insecure_seed`` step number i, counted from
    ``start``, is a function of the seed, the ``purpose``, i and the device kind. ``steps`` counts the calls of
    :meth:`add_`: one a logical step.
    """

    def __init__(self, std: float, *, insecure_seed: int | None = None, start: int = 0, purpose: int = NOISE):
        number("noise standard deviation", std, above=0)
        whole("start", start, at_least=0)
        if insecure_seed is not None:
            whole("insecure_seed", insecure_seed, at_least=0)
        self.std = float(std)
        self.steps = start
        self._seed = insecure_seed
        self._purpose = purpose
        self._cpu = self._generator(start)
        self._streams = [NormalStream(self._cpu, self.std)]
        if insecure_seed is None:  # one generator a computing thread; insecure noise does not depend on their number
            more = min(torch.get_num_threads(), _MOST_THREADS) - 1
            self._streams += [NormalStream(self._generator(start), self.std) for _ in range(more)]
        self._devices: dict[torch.device, torch.Generator] = {}

    @property
    def secure(self) -> bool:
        """Whether the generators are seeded by the operating system."""
        return self._seed is None

    def add_(self, sums: Mapping[str, Tensor]) -> None:
        """Add one step's noise in place to the float32 sums, in the order of their names.

        Raises UserError when a tensor is not float32 (or float64), since noise rounded to fewer digits is not Gaussian.
        """
        for name, tensor in sums.items():
            if tensor.dtype not in (torch.float32, torch.float64):
                raise UserError(
                    f"the clipped sum of {name} is {tensor.dtype}, noise needs float32: keep sums in float32"
                )
        self._begin_step()
        for tensor in whole_tensors(sums):
            if tensor.device.type == "cpu" and tensor.is_contiguous():
                self._add_on_cpu(tensor.view(-1))
            else:
                tensor.add_(self.sample(tensor.shape, tensor.device))
        self.steps += 1

    def sample(self, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """A float32 tensor of noise with standard deviation ``std`` on ``device``."""
        place = torch.device(device)
        if place.type != "cuda":
            noise = torch.zeros(tuple(shape), dtype=torch.float32)
            self._add_on_cpu(noise.view(-1))
            return noise.to(place)
        noise = torch.zeros(tuple(shape), dtype=torch.float32, device=place)
        if place not in self._devices:
            self._devices[place] = device_generator(place, None if self.secure else self._cpu)
        for part in noise.view(-1).split(_GPU_BLOCK):
            # float64, because torch's float32 numbers have few bits where they are large and end at 6.7
            unit = torch.randn(len(part), dtype=torch.float64, device=place, generator=self._devices[place])
            part.add_(unit, alpha=self.std)
        return noise

    def _add_on_cpu(self, flat: Tensor) -> None:
        """Add noise to a flat tensor, each thread to a part of its own."""
        if len(self._streams) == 1 or len(flat) < _FEWEST_FOR_THREADS:
            self._streams[0].add_to(flat)
            return
        parts = flat.chunk(len(self._streams))
        with ThreadPoolExecutor(len(parts)) as pool:
            list(pool.map(NormalStream.add_to, self._streams, parts))

    def _generator(self, step: int) -> np.random.Generator:
        if self._seed is None:
            return secret_generator(np.random.SFC64)
        return seeded_generator(self._seed, self._purpose, step, np.random.SFC64)

    def _begin_step(self) -> None:
        if self._seed is not None:
            self._cpu = self._generator(self.steps)
            self._streams = [NormalStream(self._cpu, self.std)]
            self._devices.clear()
