"""Where the secret random numbers come from: one generator a purpose, seeded by the operating system."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from ldm.errors import UserError

#: First words of an insecure seed's entropy, so that the same seed gives unrelated streams to different purposes.
SAMPLING, NOISE, LOSS = 1, 2, 3

#: Where the 624 words of the Mersenne Twister lie in the state of torch's CPU generator (in bytes).
_WORDS = slice(24, 24 + 8 * 624)


def secret_generator() -> np.random.Generator:
    """A CPU generator with 256 bits of entropy from the operating system.

    numpy rather than torch: torch's CPU generator keeps 32 bits of its seed, few enough to try them all.
    """
    return np.random.Generator(np.random.PCG64DXSM(secrets.randbits(256)))


def seeded_generator(seed: int, purpose: int, step: int) -> np.random.Generator:
    """The generator of one purpose and step under an insecure seed; a function of its arguments only."""
    if seed < 0 or step < 0:
        raise UserError(f"seed and step must not be negative, got {seed} and {step}")
    return np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence([seed, purpose, step])))


def device_generator(device: torch.device, entropy: np.random.Generator | None = None) -> torch.Generator:
    """A torch generator on an accelerator (Philox, 64-bit key), keyed by the operating system or by ``entropy``."""
    generator = torch.Generator(device=device)
    key = secrets.randbits(64) if entropy is None else int(entropy.integers(0, 2**64, dtype=np.uint64))
    generator.manual_seed(key)
    return generator


class LossDraws:
    """Keys torch's global generators for what a loss draws for its records: timesteps, noises, latents, dropped labels.

    One record moves the clipped sum by at most C when the others' draws stay the same. Draws that follow from a public
    training seed are dealt out by place in the batch, so that adding a record would change those of every record after
    it, and whoever knows the seed could tell. Keyed by the operating system they are independent of each other whoever
    looks. With ``insecure_seed`` those of step i, counted from ``start``, are a function of the seed, i and the process
    (``rank``) that draws them.
    """

    def __init__(self, *, insecure_seed: int | None = None, start: int = 0):
        self.steps = start
        self._seed = insecure_seed

    @contextmanager
    def step(self, device: torch.device, rank: int = 0) -> Iterator[None]:
        """Fresh draws for one logical step; afterwards the generators go on where they were."""
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            self.key(device, rank)
            self.steps += 1
            yield

    def key(self, device: torch.device, rank: int = 0) -> None:
        """Key the generators of the CPU and of ``device`` for good."""
        purpose = LOSS + 8 * rank
        entropy = secret_generator() if self._seed is None else seeded_generator(self._seed, purpose, self.steps)
        # seeding would keep 32 bits of the key; the whole state takes them all
        torch.default_generator.manual_seed(0)
        state = torch.get_rng_state()
        words = entropy.integers(0, 2**32, (_WORDS.stop - _WORDS.start) // 8, dtype=np.uint64)
        state[_WORDS] = torch.from_numpy(words.view(np.uint8))
        torch.set_rng_state(state)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(int(entropy.integers(0, 2**63)))
