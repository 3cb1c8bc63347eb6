"""The clipper on the UNets of the lineage, both attention kinds, for the parameter sets that fine-tuning chooses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.openaimodel import AttentionBlock, UNetModel
from ldm.privacy.clipping import ENGINES, Clipping, PerRecordClipper
from tests.privacy.per_record import (
    clipped_sum,
    flat,
    loss_of,
    median_norm,
    reference_gradients,
    reference_sum,
    relative_difference,
    trainable,
)

pytestmark = pytest.mark.usefixtures("uses")

# torch.func loops over records where attention kernels have no batching rule; the reference may be slow.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

KINDS = ("spatial", "attention_block")
SELECTIONS = ("attention", "everything")


class Conditioned(nn.Module):
    """A tiny UNet with its class embedder: (x, t, label) -> prediction, as the diffusion model calls it."""

    def __init__(self, kind: str, use_checkpoint: bool = False) -> None:
        super().__init__()
        spatial = kind == "spatial"
        self.unet = UNetModel(
            image_size=4,
            in_channels=3,
            out_channels=3,
            model_channels=32,
            channel_mult=(1, 2) if spatial else (1,),
            num_res_blocks=1,
            attention_resolutions=(1, 2),
            num_heads=2,
            use_scale_shift_norm=spatial,
            resblock_updown=spatial,
            use_spatial_transformer=spatial,
            context_dim=5 if spatial else None,
            use_checkpoint=use_checkpoint,
        )
        self.classes = nn.Embedding(4, 5) if spatial else None

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        context = None if self.classes is None else self.classes(label)[:, None]
        return self.unet(x, t, context)


def conditioned(kind: str, selection: str, use_checkpoint: bool = False) -> Conditioned:
    torch.manual_seed(0)
    net = Conditioned(kind, use_checkpoint)
    with torch.no_grad():
        for parameter in net.parameters():  # away from the zeros that branches start with
            parameter.add_(0.1 * torch.randn_like(parameter))
    if selection == "attention":
        net.unet.requires_grad_(False)
        for layer in net.modules():
            if isinstance(layer, SpatialTransformer | AttentionBlock):
                layer.requires_grad_(True)
    return net


def unet_rows(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(count, 3, 4, 4, generator=generator),
        "t": torch.randint(0, 1000, (count,), generator=generator),
        "label": torch.randint(0, 4, (count,), generator=generator),
        "target": torch.randn(count, 3, 4, 4, generator=generator),
    }


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_all_engines_agree_with_torch_func(kind: str, selection: str) -> None:
    net, rows = conditioned(kind, selection), unet_rows(6)
    gradients = reference_gradients(net, rows, 2)
    bound = median_norm(gradients)
    expected = reference_sum(gradients, bound)
    for engine in ENGINES:
        assert relative_difference(clipped_sum(net, rows, Clipping(bound), engine, 2), expected) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_unets_give_the_same_sums(kind: str) -> None:
    rows = unet_rows(4)
    plain = clipped_sum(conditioned(kind, "everything"), rows, Clipping(1.0))
    recomputed = clipped_sum(conditioned(kind, "everything", use_checkpoint=True), rows, Clipping(1.0))
    assert relative_difference(recomputed, plain) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_one_record_moves_the_sum_by_at_most_c(kind: str, autocast: bool) -> None:
    net, rows = conditioned(kind, "attention"), unet_rows(12)

    def total(present: Tensor) -> Tensor:
        # An absent record keeps its place with a loss of zero: half-precision kernels round by the shape of the batch,
        # which would move the other records' numbers too.
        clipper = PerRecordClipper(net, trainable(net), Clipping(0.1))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            clipper.accumulate(lambda batch: loss_of(net)(batch) * present, rows, 4)
        return flat(clipper.pop_sums())

    everyone = torch.ones(12)
    change = total(everyone) - total(everyone.index_fill(0, torch.arange(4), 0.0))
    assert 0.099 < float(change.norm()) <= 0.1 * (1 + 3e-6)


def test_single_token_attention_is_reported_as_fed_by_noise_only() -> None:
    net = conditioned("spatial", "attention")
    clipper = PerRecordClipper(net, trainable(net), Clipping(1.0))
    clipper.accumulate(loss_of(net), unet_rows(4))
    untouched = set(clipper.untouched())
    dead = [name for name in trainable(net) if any(part in name for part in ("attn2.to_q", "attn2.to_k", "norm2"))]
    assert len(dead) == 7 * 4 and untouched.issuperset(dead)
    # The last norm has one channel a group, so constants added just before it vanish too; nothing else is listed.
    assert all(
        name.startswith("unet.output_blocks.3") and name.endswith(".bias") for name in untouched.difference(dead)
    )
