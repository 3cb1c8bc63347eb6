"""Sources of secret random numbers: one generator for each purpose, seeded by the operating system."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ldm.errors import UserError

#: First words of an insecure seed's entropy, so that the same seed gives unrelated streams to different purposes.
SAMPLING, NOISE, LOSS, STATISTICS = 1, 2, 3, 4

#: Byte ranges of the seed and of the Mersenne Twister's 624 words in the state of torch's CPU generator.
_SEED, _WORDS = slice(0, 8), slice(24, 24 + 8 * 624)

#: Normal numbers made at once (256 kB): enough that calls cost nothing, few enough for the cache.
_BLOCK = 1 << 15

BitGenerator = type[np.random.PCG64DXSM] | type[np.random.SFC64]


def secret_generator(bits: BitGenerator = np.random.PCG64DXSM) -> np.random.Generator:
    """A CPU generator with 256 bits of entropy from the operating system.

    It is numpy's, because torch's CPU generator keeps 32 bits of its seed, few enough to try them all. ``bits`` is its
    source of random bits: PCG64DXSM, or SFC64 (a state of 192 bits and a counter), which makes normal numbers faster.
    """
    return np.random.Generator(bits(secrets.randbits(256)))


def seeded_generator(
    seed: int, purpose: int, step: int, bits: BitGenerator = np.random.PCG64DXSM
) -> np.random.Generator:
    """The generator of one purpose and step under an insecure seed; a function of its arguments only."""
    if seed < 0 or step < 0:
        raise UserError(f"seed and step must not be negative, got {seed} and {step}")
    return np.random.Generator(bits(np.random.SeedSequence([seed, purpose, step])))


def device_generator(device: torch.device, entropy: np.random.Generator | None = None) -> torch.Generator:
    """A torch generator on an accelerator (Philox, 64-bit key), keyed by the operating system or by ``entropy``."""
    generator = torch.Generator(device=device)
    key = secrets.randbits(64) if entropy is None else int(entropy.integers(0, 2**64, dtype=np.uint64))
    generator.manual_seed(key)
    return generator


class NormalStream:
    """Numbers from N(0, std^2), drawn in float64 from a CPU generator and rounded to float32 once, after the addition.

    numpy's ziggurat (Marsaglia and Tsang 2000) takes one of 256 layers and 52 random bits for a number, far finer than
    float32, and its tail is exact. Cheaper ways lose that: with float32 angles and radii, Box and Muller's formula can
    make about as many pairs as there are pairs of float32 numbers, so that some come often and their neighbours never.
    """

    def __init__(self, generator: np.random.Generator, std: float):
        self._generator = generator
        self._std = std
        self._made = torch.empty(_BLOCK, dtype=torch.float64)  # kept, since fresh pages cost half the time

    def add_to(self, target: Tensor) -> None:
        """Add the next numbers of the stream to a contiguous tensor, in place."""
        for part in target.view(-1).split(_BLOCK):
            made = self._made[: len(part)]
            self._generator.standard_normal(out=made.numpy())
            part.add_(made, alpha=self._std)


class LossDraws:
    """Seeds torch's global generators for the random numbers of a loss: timesteps, noises, latents, dropped labels.

    One record moves the clipped sum by at most C only if the random numbers of the other records stay the same. With a
    public seed they depend on a record's position in the batch, so adding one record changes those of all later
    records, and the bound C no longer holds. Seeding from the operating system makes them independent across records.
    With ``insecure_seed`` the numbers of step i, counted from ``start``, are a function of the seed, i and the process
    (``rank``).
    """

    def __init__(self, *, insecure_seed: int | None = None, start: int = 0):
        self.steps = start
        self._seed = insecure_seed

    @contextmanager
    def step(self, device: torch.device, rank: int = 0) -> Iterator[None]:
        """Fresh random numbers for one logical step; on exit torch's generators get their earlier state back."""
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            self._key_torch(device, self._entropy(rank))
            self.steps += 1
            yield

    def key(self, device: torch.device, rank: int = 0) -> None:
        """Seed the global generators of torch (CPU and ``device``), numpy and Python; the old states are not restored.

        Data sets that mirror or crop draw from these generators, or derive a seed from ``torch.initial_seed()``.
        """
        entropy = self._entropy(rank)
        self._key_torch(device, entropy)
        np.random.seed(entropy.integers(0, 2**32, 624, dtype=np.uint32))
        random.seed(entropy.bytes(32))

    def _entropy(self, rank: int) -> np.random.Generator:
        if self._seed is None:
            return secret_generator()
        return seeded_generator(self._seed, LOSS + 8 * rank, self.steps)

    @staticmethod
    def _key_torch(device: torch.device, entropy: np.random.Generator) -> None:
        # manual_seed would keep only 32 bits of the key, so the whole state is overwritten
        torch.default_generator.manual_seed(0)
        state = torch.get_rng_state()
        words = entropy.integers(0, 2**32, (_WORDS.stop - _WORDS.start) // 8, dtype=np.uint64)
        state[_WORDS] = torch.from_numpy(words.view(np.uint8))
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(int(entropy.integers(0, 2**63)))
        # initial_seed() returns this part of the state; without it, it would return the public value 0
        state[_SEED] = torch.from_numpy(entropy.integers(0, 2**64, 1, dtype=np.uint64).view(np.uint8))
        torch.set_rng_state(state)
