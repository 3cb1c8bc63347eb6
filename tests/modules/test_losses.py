"""Autoencoder losses: formulas against plain arithmetic, the adaptive weight, the perceptual network's weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ldm.errors import UserError
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.losses import LPIPSWithDiscriminator, ReconstructionKL
from ldm.modules.losses.discriminator import ActNorm, NLayerDiscriminator, hinge_d_loss, vanilla_d_loss
from ldm.modules.losses.lpips import LPIPS, VGG_FILE, find_head_weights


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    inputs, reconstructions = (2 * torch.rand(2, 3, 16, 16, generator=generator) - 1 for _ in range(2))
    return inputs, reconstructions, DiagonalGaussianDistribution(torch.randn(2, 4, 4, 4, generator=generator))


def adversarial(**changes) -> LPIPSWithDiscriminator:
    torch.manual_seed(0)
    return LPIPSWithDiscriminator(**({"disc_start": 0, "perceptual_weight": 0.0, "disc_num_layers": 2} | changes))


# --- the small loss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pixel", "power"), [("l2", 2), ("l1", 1)])
def test_reconstruction_kl(images, pixel, power):
    x, y, q = images
    loss, log = ReconstructionKL(pixel=pixel, kl_weight=0.5)(x, y, q, split="val")
    kl = 0.5 * (q.mean**2 + q.var - 1 - q.logvar).sum(dim=(1, 2, 3)).mean() / (3 * 16 * 16)
    error = ((x - y).abs() ** power).mean()
    torch.testing.assert_close(loss, error + 0.5 * kl)
    torch.testing.assert_close(log["val/kl_loss"], kl)
    torch.testing.assert_close(log["val/rec_loss"], error)


def test_reconstruction_kl_unknown_error():
    with pytest.raises(UserError, match="use one of l2, l1"):
        ReconstructionKL(pixel="mse")


# --- the lineage's loss -----------------------------------------------------------------------------------------------


def test_generator_before_the_start(images):
    x, y, q = images
    loss, log = adversarial(disc_start=10, kl_weight=0.1, logvar_init=0.3)(x, y, q, 0, 9)
    nll = ((x - y).abs() / math.exp(0.3) + 0.3).sum() / 2
    torch.testing.assert_close(loss, nll + 0.1 * q.kl().mean())
    assert log["train/disc_factor"] == 0
    assert set(log) == {
        f"train/{name}"
        for name in ("total_loss", "logvar", "kl_loss", "nll_loss", "rec_loss", "d_weight", "disc_factor", "g_loss")
    }


def test_weights_scale_the_pixels(images):
    x, y, q = images
    weights = torch.rand(2, 1, 16, 16)
    loss, log = adversarial(disc_start=10, kl_weight=0.0)(x, y, q, 0, 0, weights=weights)
    torch.testing.assert_close(loss, (weights * (x - y).abs()).sum() / 2)
    torch.testing.assert_close(log["train/nll_loss"], (x - y).abs().sum() / 2)


def test_adaptive_weight_balances_the_gradients(images):
    x, _, q = images
    last = nn.Conv2d(3, 3, 3, padding=1)
    loss = adversarial(kl_weight=0.0, disc_weight=0.7, disc_factor=0.9)
    y = last(x)
    total, log = loss(x, y, q, 0, 0, last_layer=last.weight)
    (nll_grad,) = torch.autograd.grad((x - y).abs().sum() / 2, last.weight, retain_graph=True)
    g_loss = -loss.discriminator(y).mean()
    (g_grad,) = torch.autograd.grad(g_loss, last.weight, retain_graph=True)
    weight = 0.7 * min(float(nll_grad.norm() / (g_grad.norm() + 1e-4)), 1e4)
    assert log["train/d_weight"].item() == pytest.approx(weight, rel=1e-3)
    torch.testing.assert_close(total, (x - y).abs().sum() / 2 + weight * 0.9 * g_loss, rtol=1e-4, atol=1e-3)


def test_adaptive_weight_is_zero_without_gradients(images):
    x, y, q = images
    last = nn.Conv2d(3, 3, 3)
    with torch.no_grad():
        _, log = adversarial()(x, y, q, 0, 0, last_layer=last.weight, split="val")
    assert log["val/d_weight"] == 0


@pytest.mark.parametrize(("name", "formula"), [("hinge", hinge_d_loss), ("vanilla", vanilla_d_loss)])
def test_discriminator_loss(images, name, formula):
    x, y, q = images
    y.requires_grad_()
    loss = adversarial(disc_loss=name, disc_factor=0.5).eval()
    total, log = loss(x, y, q, 1, 0)
    torch.testing.assert_close(total, 0.5 * formula(loss.discriminator(x), loss.discriminator(y)))
    total.backward()
    assert y.grad is None
    assert set(log) == {"train/disc_loss", "train/logits_real", "train/logits_fake"}


def test_discriminator_formulas():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 0.5])
    assert hinge_d_loss(real, fake).item() == pytest.approx(0.5 * (0.5 + 0.75))
    want = 0.5 * (math.log1p(math.exp(-2)) + math.log(2) + math.log1p(math.exp(-3)) + math.log1p(math.exp(0.5))) / 2
    assert vanilla_d_loss(real, fake).item() == pytest.approx(want)


def test_unknown_discriminator_loss():
    with pytest.raises(UserError, match="did you mean 'hinge'"):
        adversarial(disc_loss="hing")


def test_conditional_discriminator(images):
    x, y, q = images
    loss = adversarial(disc_conditional=True, disc_in_channels=5)
    with pytest.raises(UserError, match="disc_conditional"):
        loss(x, y, q, 1, 0)
    total, _ = loss(x, y, q, 1, 0, cond=torch.zeros(2, 2, 16, 16))
    assert total.isfinite()


# --- discriminator ----------------------------------------------------------------------------------------------------


def test_patch_map_size():
    assert NLayerDiscriminator(3, ndf=4).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 6, 6)


@pytest.mark.parametrize(("layers", "smallest"), [(1, 6), (2, 12), (3, 24)])
def test_too_small_images(layers, smallest):
    net = NLayerDiscriminator(1, ndf=4, n_layers=layers).eval()
    assert net(torch.zeros(1, 1, smallest, smallest)).numel() > 0
    with pytest.raises(UserError, match="too small"):
        net(torch.zeros(1, 1, smallest - 1, smallest - 1))


def test_act_norm_sets_itself_from_the_first_training_batch():
    layer = ActNorm(3)
    x = 5 + 2 * torch.randn(8, 3, 4, 4)
    torch.testing.assert_close(layer.eval()(x), x)
    y = layer.train()(x)
    torch.testing.assert_close(y.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    scale = layer.scale.detach().clone()
    layer(x * 3)
    assert torch.equal(layer.scale, scale)
    assert set(layer.state_dict()) == {"loc", "scale", "initialized"}


def test_act_norm_discriminator_has_biases():
    names = NLayerDiscriminator(3, ndf=4, use_actnorm=True).state_dict()
    assert {"main.2.bias", "main.3.loc"} <= set(names)
    assert "main.2.bias" not in NLayerDiscriminator(3, ndf=4).state_dict()


# --- perceptual network -----------------------------------------------------------------------------------------------


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("LDM_VGG16_WEIGHTS", raising=False)
    return tmp_path


def test_perceptual_loss_without_weights(no_cache, images):
    x, y, _ = images
    net = LPIPS()
    with pytest.raises(UserError, match=f"{VGG_FILE}.*perceptual_weight: 0"):
        net(x, y)


def test_named_file_must_exist(no_cache, monkeypatch):
    with pytest.raises(UserError, match="no file nowhere"):
        LPIPS("nowhere.pth")
    monkeypatch.setenv("LDM_VGG16_WEIGHTS", "nowhere.pth")
    with pytest.raises(UserError, match=r"\$LDM_VGG16_WEIGHTS: no file nowhere"):
        LPIPS()


def test_no_network_without_perceptual_weight():
    assert not any("perceptual" in name for name in adversarial(perceptual_weight=0.0).state_dict())


@pytest.fixture
def vgg_file(no_cache):
    """A stand-in for torchvision's file: its names and shapes, small random numbers."""
    assert find_head_weights() is not None  # torchmetrics comes with Lightning
    torch.manual_seed(0)
    state = {}
    for slice_name, value in LPIPS().net.state_dict().items():
        _, number, name = slice_name.split(".")
        state[f"features.{number}.{name}"] = 0.05 * torch.randn_like(value)
    state["classifier.0.weight"] = torch.zeros(1)
    path = no_cache / "hub" / "checkpoints" / VGG_FILE
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    return path


def test_weights_from_the_cache(vgg_file, images):
    x, y, _ = images
    net = LPIPS()
    net.train()
    state = torch.load(vgg_file, weights_only=True)
    assert torch.equal(net.net.slice5[-2].weight, state["features.28.weight"])
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert not any(module.training for module in net.modules())
    distance = net(x, y)
    assert distance.shape == (2, 1, 1, 1)
    assert (distance > 0).all()
    assert net(x, x).abs().max() == 0
    # An image without colour counts as three equal channels.
    torch.testing.assert_close(net(x[:, :1], y[:, :1]), net(x[:, :1].expand_as(x), y[:, :1].expand_as(y)))


def test_another_file_is_refused(vgg_file):
    torch.save({"features.0.weight": torch.zeros(1)}, vgg_file)
    with pytest.raises(UserError, match="not torchvision's VGG16"):
        LPIPS()


def test_same_distance_as_torchmetrics(vgg_file, images, monkeypatch):
    """Another implementation with our backbone's weights and its own copy of the heads."""
    from torchmetrics.functional.image import lpips
    from torchvision.models import vgg

    # Without the classifier, whose 120 million numbers take seconds to draw.
    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda *_: vgg.make_layers(vgg.cfgs["D"]))
    reference = lpips._LPIPS(net="vgg", pnet_rand=True)
    x, y, _ = images
    net = LPIPS()
    backbone = {name: value for name, value in net.state_dict().items() if name.startswith("net.")}
    outcome = reference.load_state_dict(backbone, strict=False)
    assert not outcome.unexpected_keys and not any(name.startswith("net.") for name in outcome.missing_keys)
    with torch.no_grad():
        torch.testing.assert_close(net(x, y), reference(x, y), rtol=1e-5, atol=1e-6)


def test_weights_inside_a_checkpoint_are_enough(vgg_file, no_cache, images):
    x, y, q = images
    source = adversarial(perceptual_weight=1.0)
    vgg_file.unlink()
    target = adversarial(perceptual_weight=1.0)
    with pytest.raises(UserError, match="the perceptual loss has no weights"):
        target.check_ready()
    incomplete = source.state_dict()
    del incomplete["perceptual_loss.lin3.model.1.weight"]
    target.load_state_dict(incomplete, strict=False)
    assert not target.perceptual_loss.ready
    target.load_state_dict(source.state_dict())
    target.check_ready()
    torch.testing.assert_close(target(x, y, q, 0, 0)[0], source(x, y, q, 0, 0)[0])


def test_gradient_is_finite_where_features_are_zero(vgg_file):
    net = LPIPS()
    for parameter in net.net.parameters():
        parameter.zero_()
    y = torch.rand(1, 3, 16, 16, requires_grad=True)
    net(torch.zeros(1, 3, 16, 16), y).sum().backward()
    assert y.grad.isfinite().all()
