"""The networks of quantising first stages, whose latents are vectors of a codebook (Esser et al. 2021, section 3.1)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ldm.errors import UserError
from ldm.models.first_stage_networks import FirstStageNetworks
from ldm.modules.vqvae.quantize import Quantised, VectorQuantizer2

# Sizes of `batch_resize_range` are multiples of this, so that every first stage can halve them at each level.
SIZE_STEP = 16


class VQModelNetworks(FirstStageNetworks):
    """Autoencoder of images (B,C,H,W) in [-1,1] with a codebook of `n_embed` vectors of `embed_dim` numbers.

    Latents are (B, embed_dim, H/f, W/f) with f = 2**(len(ch_mult)-1). For `lossconfig` and training see `FirstStage`;
    the loss is one like `ldm.modules.losses.VQLPIPSWithDiscriminator`. `remap` and `sane_index_shape`: see
    `VectorQuantizer2`. `use_ema` keeps a running average of all weights; validation metrics are also logged with it
    ("val_ema/..."). `batch_resize_range` (smallest, largest) trains on random multiples of 16 pixels in between; the
    first steps use the largest, so that a lack of memory shows at once.

    `ckpt_path` is loaded strictly except for keys starting with one of `ignore_keys`; `loss.*` and `model_ema.*` are
    dropped when this model has none, and may be absent altogether. Raises UserError for a bad ddconfig or range.

    Args:
        n_embed: number of codebook vectors.
        embed_dim: length of a codebook vector.
        ckpt_path: checkpoint whose weights are loaded.
        ignore_keys: prefixes of keys that are not loaded.
        batch_resize_range: smallest and largest side, in pixels, of the images in training; None leaves them as they
            are.
        remap: file with the codes in use; other codes are mapped to these.
        sane_index_shape: codes come as (B, h, w) in place of a flat list.
        use_ema: keep a running average of all weights.
        ema_decay: decay rate of that average, in [0, 1).
    """

    trained_parts = ("encoder", "decoder", "quantize", "quant_conv", "post_quant_conv")

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        n_embed: int,
        embed_dim: int,
        ckpt_path: str | os.PathLike[str] | None = None,
        ignore_keys: Sequence[str] | None = None,
        image_key: str = "image",
        colorize_nlabels: int | None = None,
        monitor: str | None = None,
        batch_resize_range: Sequence[int] | None = None,
        scheduler_config: Mapping[str, Any] | None = None,
        lr_g_factor: float = 1.0,
        remap: str | os.PathLike[str] | None = None,
        sane_index_shape: bool = False,
        use_ema: bool = False,
        betas: Sequence[float] = (0.5, 0.9),
        accumulate_grad_batches: int = 1,
        ema_decay: float = 0.9999,
    ) -> None:
        super().__init__(
            ddconfig,
            lossconfig,
            embed_dim,
            double_z=False,
            image_key=image_key,
            colorize_nlabels=colorize_nlabels,
            monitor=monitor,
            scheduler_config=scheduler_config,
            lr_g_factor=lr_g_factor,
            betas=betas,
            accumulate_grad_batches=accumulate_grad_batches,
        )
        self.n_embed = n_embed
        self.batch_resize_range = _checked_range(batch_resize_range)
        self.quantize = VectorQuantizer2(n_embed, embed_dim, beta=0.25, remap=remap, sane_index_shape=sane_index_shape)
        self.quant_conv = nn.Conv2d(self.z_channels, embed_dim, kernel_size=1)
        self.post_quant_conv = nn.Conv2d(embed_dim, self.z_channels, kernel_size=1)
        self.use_ema = use_ema
        if use_ema:
            self._make_average(ema_decay)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys or ())

    def _make_average(self, decay: float) -> None:
        """Make the running average; only a model in training has one."""

    # --- inference ----------------------------------------------------------------------------------------------------

    def encode_to_prequant(self, x: Tensor) -> Tensor:
        """Latents (B,embed_dim,h,w) of images before they are replaced by codes."""
        return self.quant_conv(self.encoder(x))

    def encode(self, x: Tensor) -> Any:
        """Quantised latents (B,embed_dim,h,w), codebook loss and (None, None, code numbers) of images (B,C,H,W)."""
        return self.quantize(self.encode_to_prequant(x))

    def decode(self, quant: Tensor) -> Tensor:
        """Images, nominally in [-1,1] but not clamped, of quantised latents (B,embed_dim,h,w)."""
        return self.decoder(self.post_quant_conv(quant))

    def decode_code(self, code_b: Tensor) -> Tensor:
        """Images of code numbers (B,h,w)."""
        codes = self.quantize.get_codebook_entry(code_b, shape=(*code_b.shape, self.embed_dim))
        return VQModelNetworks.decode(self, codes)

    def forward(self, input: Tensor, return_pred_indices: bool = False) -> tuple[Tensor, ...]:
        """Reconstructions and codebook loss of images, and the code numbers if asked for."""
        quantised: Quantised = self.quantize(self.encode_to_prequant(input))
        quant, loss, (_, _, indices) = quantised
        images = VQModelNetworks.decode(self, quant)
        return (images, loss, indices) if return_pred_indices else (images, loss)


class VQModelInterfaceNetworks(VQModelNetworks):
    """`VQModelNetworks` as a first stage: latents are those before quantisation, decoding quantises them."""

    def encode(self, x: Tensor) -> Tensor:
        """Latents (B,embed_dim,h,w) of images (B,C,H,W) before they are replaced by codes."""
        return self.encode_to_prequant(x)

    def decode(self, h: Tensor, force_not_quantize: bool = False) -> Tensor:
        """Images of latents (B,embed_dim,h,w), replaced by the nearest codes first unless ``force_not_quantize``."""
        quant = h if force_not_quantize else self.quantize(h)[0]
        return super().decode(quant)


class IdentityFirstStage(nn.Module):
    """A first stage that leaves images as they are, for diffusion in pixel space.

    `vq_interface` makes `quantize` answer like a codebook's: (x, None, [None, None, None]).
    """

    def __init__(self, vq_interface: bool = False) -> None:
        super().__init__()
        self.vq_interface = vq_interface

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, x: Tensor) -> Tensor:
        return x

    def quantize(self, x: Tensor) -> Any:
        return (x, None, [None, None, None]) if self.vq_interface else x

    def forward(self, x: Tensor) -> Tensor:
        return x


def _checked_range(sizes: Sequence[int] | None) -> tuple[int, int] | None:
    if sizes is None:
        return None
    if len(sizes) != 2 or not 0 < sizes[0] <= sizes[1] or any(size % SIZE_STEP for size in sizes):
        raise UserError(
            f"batch_resize_range: {list(sizes)} must be the smallest and the largest size in pixels, multiples of "
            f"{SIZE_STEP}, such as [128, 256]"
        )
    return int(sizes[0]), int(sizes[1])
