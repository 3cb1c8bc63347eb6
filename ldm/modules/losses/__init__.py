"""Training losses of the autoencoder."""

from ldm.modules.losses.contperceptual import LPIPSWithDiscriminator
from ldm.modules.losses.reconstruction import ReconstructionKL
from ldm.modules.losses.vqperceptual import VQLPIPSWithDiscriminator

__all__ = ["LPIPSWithDiscriminator", "ReconstructionKL", "VQLPIPSWithDiscriminator"]
