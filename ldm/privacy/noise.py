"""`GaussianNoise`: the noise of the mechanism, in float32, from generators used for nothing else.

**Guarantee.** Every call of :meth:`GaussianNoise.add_` adds to every coordinate of every tensor one number from
N(0, std^2), independent of all other coordinates, tensors and steps. (Tails end beyond 9 std, a chance of 2^-60.)

===============================================  ===================================================================
case                                             what happens
===============================================  ===================================================================
sums of zeros (an empty batch)                   noise is added; a step without records looks like any other
a sum in half precision                          refused before anything is noised; rounded noise is not Gaussian
a sum that is not contiguous, or a scalar        every coordinate gets its own number
no tensors at all                                nothing is added; the step counts
the order in which names are given               has no effect; noise is added in the order of sorted names
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

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.privacy.randomness import NOISE, NormalStream, device_generator, secret_generator, seeded_generator
from ldm.privacy.validate import number, whole


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
        self._cpu = secret_generator() if insecure_seed is None else seeded_generator(insecure_seed, purpose, start)
        self._normal = NormalStream(self._cpu, self.std)
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
        for name in sorted(sums):
            tensor = sums[name]
            if tensor.device.type == "cpu" and tensor.is_contiguous():
                self._normal.add_to(tensor)
            else:
                tensor.add_(self.sample(tensor.shape, tensor.device))
        self.steps += 1

    def sample(self, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """A float32 tensor of noise with standard deviation ``std`` on ``device``."""
        place = torch.device(device)
        if place.type == "cpu":
            noise = torch.zeros(tuple(shape), dtype=torch.float32)
            self._normal.add_to(noise)
            return noise
        if place not in self._devices:
            self._devices[place] = device_generator(place, None if self.secure else self._cpu)
        unit = torch.randn(tuple(shape), dtype=torch.float32, device=place, generator=self._devices[place])
        return unit.mul_(self.std)

    def _begin_step(self) -> None:
        if self._seed is not None:
            self._cpu = seeded_generator(self._seed, self._purpose, self.steps)
            self._normal = NormalStream(self._cpu, self.std)
            self._devices.clear()
