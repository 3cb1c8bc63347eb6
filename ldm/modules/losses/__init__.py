"""Training losses of the autoencoder."""

from ldm.modules.losses.contperceptual import LPIPSWithDiscriminator
from ldm.modules.losses.reconstruction import ReconstructionKL

__all__ = ["LPIPSWithDiscriminator", "ReconstructionKL"]
