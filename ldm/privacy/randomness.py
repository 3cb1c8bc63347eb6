"""Where the secret random numbers come from: one generator a purpose, seeded by the operating system."""

from __future__ import annotations

import secrets

import numpy as np
import torch

from ldm.errors import UserError

#: First words of an insecure seed's entropy, so that the same seed gives unrelated streams to different purposes.
SAMPLING, NOISE = 1, 2


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
