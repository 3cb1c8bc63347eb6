"""Quantising first stages: autoencoders whose latents are vectors of a codebook (Esser et al. 2021, section 3.1)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.models.first_stage import FirstStage
from ldm.modules.ema import LitEma
from ldm.modules.vqvae.quantize import Quantised, VectorQuantizer2

# Sizes of `batch_resize_range` are multiples of this, so that every first stage can halve them at each level.
SIZE_STEP = 16
STEPS_AT_FULL_SIZE = 4


class VQModel(FirstStage):
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
        ckpt_path: str | os.PathLike | None = None,
        ignore_keys: Sequence[str] | None = None,
        image_key: str = "image",
        colorize_nlabels: int | None = None,
        monitor: str | None = None,
        batch_resize_range: Sequence[int] | None = None,
        scheduler_config: Mapping[str, Any] | None = None,
        lr_g_factor: float = 1.0,
        remap: str | os.PathLike | None = None,
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
            self.model_ema = LitEma(self, decay=ema_decay)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys or ())

    def init_from_ckpt(self, path: str | os.PathLike, ignore_keys: Sequence[str] = ()) -> list[str]:
        """As `FirstStage.init_from_ckpt`; an average that the file lacks starts at the file's weights."""
        absent = super().init_from_ckpt(path, ignore_keys)
        if "model_ema.num_updates" in absent:
            self.model_ema.reset(self)
        return absent

    @contextmanager
    def ema_scope(self, context: str | None = None) -> Iterator[None]:
        """Run the body with the averaged weights in place of the trained ones (no effect without EMA)."""
        if not self.use_ema:
            yield
            return
        with self.model_ema.swapped(self):
            yield

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
        return VQModel.decode(self, codes)

    def forward(self, input: Tensor, return_pred_indices: bool = False) -> tuple[Tensor, ...]:
        """Reconstructions and codebook loss of images, and the code numbers if asked for."""
        quantised: Quantised = self.quantize(self.encode_to_prequant(input))
        quant, loss, (_, _, indices) = quantised
        images = VQModel.decode(self, quant)
        return (images, loss, indices) if return_pred_indices else (images, loss)

    # --- training -----------------------------------------------------------------------------------------------------

    def get_input(self, batch: Mapping[str, Tensor], key: str) -> Tensor:
        x = super().get_input(batch, key)
        if self.batch_resize_range is None or not self.training:
            return x
        low, high = self.batch_resize_range
        steps = torch.randint((high - low) // SIZE_STEP + 1, ()).item()
        size = high if self.global_step <= STEPS_AT_FULL_SIZE else low + SIZE_STEP * int(steps)
        return x if size == x.shape[2] else F.interpolate(x, size=size, mode="bicubic")

    def outputs(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return self(inputs, return_pred_indices=True)

    def loss_of(self, inputs: Tensor, outputs: tuple, optimizer_idx: int, split: str) -> tuple[Tensor, dict]:
        reconstructions, codebook_loss, indices = outputs
        return self.loss(
            codebook_loss,
            inputs,
            reconstructions,
            optimizer_idx,
            self.global_step,
            last_layer=self.get_last_layer(),
            split=split,
            predicted_indices=indices,
        )

    def after_step(self) -> None:
        if self.use_ema:
            self.model_ema(self)

    def _scores(self, inputs: Tensor, split: str) -> dict[str, Tensor]:
        scores = super()._scores(inputs, split)
        if self.use_ema:
            with self.ema_scope():
                scores |= super()._scores(inputs, f"{split}_ema")
        return scores

    # --- images -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def log_images(self, batch: Mapping[str, Tensor], count: int = 8, plot_ema: bool = False) -> dict[str, Tensor]:
        """Images (n,C,H,W) for the logger, nominally in [-1,1]: inputs and reconstructions."""
        x = self.get_input(batch, self.image_key)[:count].to(self.device)
        images = {"inputs": x, "reconstructions": self(x)[0]}
        if plot_ema and self.use_ema:
            with self.ema_scope():
                images["reconstructions_ema"] = self(x)[0]
        if x.shape[1] > 3:
            images = {name: self.to_rgb(image) for name, image in images.items()}
        return images


class VQModelInterface(VQModel):
    """`VQModel` as the first stage of latent diffusion: latents are those before quantisation, decoding quantises."""

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
