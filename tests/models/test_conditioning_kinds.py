"""Conditions that join the channels (concat), the context, or both (hybrid); and the learned log-variance."""

from __future__ import annotations

import pytest
import torch

from ldm.models.diffusion.ddim import DDIMSampler
from tests import tiny

SEGMENTS = 3
MAP_CHANNELS = 2


def semantic(**params):
    """A model that is shown a map of segments, rescaled to the latents' size (semantic synthesis)."""
    section = tiny.ldm(
        "attention",
        unet_params={"in_channels": 2 + MAP_CHANNELS},
        cond_stage_key="segmentation",
        conditioning_key="concat",
        cond_stage_config={
            "target": "ldm.modules.encoders.modules.SpatialRescaler",
            "params": {"n_stages": 1, "in_channels": SEGMENTS, "out_channels": MAP_CHANNELS},
        },
        **params,
    )
    torch.manual_seed(0)
    model = tiny.build(section)
    tiny.scatter(model)
    return model


def batch(count: int = 4) -> dict[str, torch.Tensor]:
    segments = torch.arange(count * tiny.SIDE**2).reshape(count, tiny.SIDE, tiny.SIDE) % SEGMENTS
    return {**tiny.batch(count), "segmentation": torch.nn.functional.one_hot(segments, SEGMENTS).float()}


def test_concatenated_condition_trains():
    model = semantic(cond_stage_trainable=True)
    trained = model.trainable()
    assert {name.partition(".")[0] for name in trained} == {"model", "cond_stage_model"}
    loss, _ = model.shared_step(batch())
    loss.backward()
    gradients = [p.grad for name, p in trained.items() if name.startswith("cond_stage_model")]
    assert gradients
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_concatenated_condition_samples():
    model = semantic().eval()
    _, condition = model.get_input(batch(2), "image")
    assert condition.shape == (2, MAP_CHANNELS, tiny.LATENT, tiny.LATENT)
    noise = torch.randn(2, 2, tiny.LATENT, tiny.LATENT)
    samples, other = (
        DDIMSampler(model).sample(3, 2, noise.shape[1:], cond, x_T=noise)[0] for cond in (condition, -condition)
    )
    assert samples.shape == noise.shape
    assert not torch.allclose(samples, other)


def test_expanding_a_batch_of_a_concatenated_condition():
    model = semantic()
    rows = model.expand_batch(batch(2), multiplicity=3, microbatch=None)
    assert len(rows["cond"]) == 6
    losses = model.per_example_losses(rows)
    assert losses.shape == (6,)
    one = model.per_example_losses({key: value[4:5] for key, value in rows.items()})
    torch.testing.assert_close(one, losses[4:5])


def test_hybrid_condition_reaches_both_ways():
    torch.manual_seed(0)
    model = tiny.build(tiny.ldm(unet_params={"in_channels": 3}, conditioning_key="hybrid")).eval()
    tiny.scatter(model)
    x, t = torch.randn(2, 2, tiny.LATENT, tiny.LATENT), torch.tensor([10, 500])
    condition = {"c_concat": [torch.randn(2, 1, tiny.LATENT, tiny.LATENT)], "c_crossattn": [torch.randn(2, 1, 5)]}
    with torch.no_grad():
        got = model.apply_model(x, t, condition)
        for kind in condition:
            changed = {**condition, kind: [2 * condition[kind][0]]}
            assert not torch.allclose(model.apply_model(x, t, changed), got)
        guided, _ = DDIMSampler(model).sample(
            2, 2, x.shape[1:], condition, unconditional_conditioning=condition, unconditional_guidance_scale=2.0
        )
    assert guided.shape == x.shape


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_learned_log_variance_trains(kind):
    torch.manual_seed(0)
    model = tiny.build(tiny.ldm(kind, learn_logvar=True, logvar_init=0.3))
    assert "logvar" in model.state_dict()
    optimizer = torch.optim.SGD(model.trainable().values(), lr=0.1)
    t = torch.tensor([3, 3, 700])
    z, condition = model.get_input(tiny.batch(3), "image")
    condition = None if condition is None else model.get_learned_conditioning(condition)
    terms = model.loss_terms(z, t, torch.randn_like(z), condition)
    torch.testing.assert_close(terms["gamma"], terms["simple"] / torch.exp(torch.tensor(0.3)) + 0.3)
    terms["loss"].mean().backward()
    slope = (1 - terms["simple"].detach() / torch.exp(torch.tensor(0.3))) / 3
    torch.testing.assert_close(model.logvar.grad[[3, 700]], torch.stack([slope[0] + slope[1], slope[2]]))
    assert model.logvar.grad.count_nonzero() == 2
    optimizer.step()
    assert (model.logvar.detach() != torch.tensor(0.3)).sum() == 2
