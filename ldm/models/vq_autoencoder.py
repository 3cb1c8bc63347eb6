"""Quantising first stages as Lightning trains them; see `ldm.models.vq_networks`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.models.first_stage import FirstStage
from ldm.models.vq_networks import SIZE_STEP, VQModelInterfaceNetworks, VQModelNetworks
from ldm.modules.ema import LitEma

STEPS_AT_FULL_SIZE = 4


class VQModel(VQModelNetworks, FirstStage):
    """`VQModelNetworks` with the training of `FirstStage`; its parameters are those of the networks.

    The training loss is one like `ldm.modules.losses.VQLPIPSWithDiscriminator`. `use_ema` keeps a running average of
    all weights; validation metrics are also logged with it ("val_ema/...").
    """

    def _make_average(self, decay: float) -> None:
        self.model_ema = LitEma(self, decay=decay)

    def init_from_ckpt(self, path: str | os.PathLike[str], ignore_keys: Sequence[str] = ()) -> list[str]:
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

    def loss_of(
        self, inputs: Tensor, outputs: tuple[Any, ...], optimizer_idx: int, split: str
    ) -> tuple[Tensor, dict[str, Tensor]]:
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


class VQModelInterface(VQModelInterfaceNetworks, VQModel):
    """`VQModelInterfaceNetworks` with the training of `VQModel`."""
