"""Quantising first stages: numbers of the lineage, the quantiser's rules, loading, training, and diffusion on top."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from ldm.data.latent_cache import LatentCache
from ldm.errors import UserError
from ldm.models.autoencoder import IdentityFirstStage, VQModel, VQModelInterface
from ldm.models.vq_networks import VQModelNetworks
from ldm.modules.losses import VQLPIPSWithDiscriminator
from ldm.modules.losses.vqperceptual import measure_perplexity
from ldm.modules.vqvae import quantize
from ldm.modules.vqvae.quantize import VectorQuantizer2
from tests import parity, tiny
from tests.models.first_stages import fit, moved, snapshot, tiny_config

IDENTITY = {"target": "torch.nn.Identity"}
DDCONFIG = tiny_config(double_z=False)


def loss_config(**changes) -> dict:
    params = {"disc_start": 0, "perceptual_weight": 0.0, "disc_in_channels": 1, "disc_num_layers": 2, "disc_ndf": 8}
    return {
        "target": "ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
        "params": {**params, "n_classes": 8, **changes},
    }


PLAIN = loss_config(disc_factor=0.0)


def tiny_model(lossconfig: dict = PLAIN, kind: type[VQModel] = VQModel, **params) -> VQModel:
    torch.manual_seed(0)
    model = kind(DDCONFIG, lossconfig, n_embed=8, embed_dim=2, **params)
    model.learning_rate = 1e-3
    return model


@pytest.mark.parametrize("entry", parity.entries("autoencoder", "vq"), ids=parity.name)
def test_numbers(entry):
    model = parity.build(entry)
    inputs, outputs = parity.io(entry)
    with torch.no_grad():
        prequant = model.encode(inputs["x"])
        quant, vq_loss, (_, _, indices) = model.quantize(prequant)
        got = {
            "prequant": prequant,
            "quant": quant,
            "vq_loss": vq_loss,
            "indices": indices,
            "dec": model.decode(prequant),
            "dec_nq": model.decode(prequant, force_not_quantize=True),
            "dec_z": model.decode(inputs["z"]),
            "codes": model.quantize.get_codebook_entry(indices, shape=None),
        }
    assert set(got) == set(outputs)
    for name, value in got.items():
        parity.check(name, value, entry)


# --- the quantiser ----------------------------------------------------------------------------------------------------


def quantiser(**params) -> VectorQuantizer2:
    torch.manual_seed(0)
    module = VectorQuantizer2(5, 2, **params)
    torch.nn.init.normal_(module.embedding.weight)
    return module


def test_nearest_codes_by_brute_force(monkeypatch):
    module, z = quantiser(sane_index_shape=True), torch.randn(2, 2, 3, 4)
    _, _, (_, _, indices) = module(z)
    distances = (z[:, None] - module.embedding.weight[None, :, :, None, None]).square().sum(dim=2)
    assert torch.equal(indices, distances.argmin(dim=1))
    monkeypatch.setattr(quantize, "TABLE_SIZE", 35)  # seven positions at a time
    assert torch.equal(module.nearest(z), indices)


def test_gradient_passes_straight_through():
    module, z = quantiser(), torch.randn(1, 2, 2, 2, requires_grad=True)
    quant, _, _ = module(z)
    assert not torch.equal(quant, z)
    upstream = torch.randn_like(quant)
    quant.backward(upstream)
    assert torch.equal(z.grad, upstream)
    assert module.embedding.weight.grad is None


@pytest.mark.parametrize(("legacy", "to_latents", "to_codes"), [(True, 1.0, 0.25), (False, 0.25, 1.0)])
def test_beta_weighs_one_of_the_two_pulls(legacy, to_latents, to_codes):
    module, z = quantiser(legacy=legacy), torch.randn(1, 2, 3, 3, requires_grad=True)
    quant, loss, (_, _, indices) = module(z)
    difference = (z - quant).detach()
    torch.testing.assert_close(loss, 1.25 * difference.square().mean())
    loss.backward()
    torch.testing.assert_close(z.grad, to_latents * 2 * difference / z.numel())
    pull = torch.zeros(5, 2).index_add_(0, indices, -2 * difference.movedim(1, -1).reshape(-1, 2) / z.numel())
    torch.testing.assert_close(module.embedding.weight.grad, to_codes * pull)


def test_index_shapes_and_codebook_entries(tmp_path):
    z = torch.randn(2, 2, 3, 4)
    quant, _, (_, _, flat) = quantiser()(z)
    _, _, (_, _, sane) = quantiser(sane_index_shape=True)(z)
    assert flat.shape == (24,)
    assert torch.equal(sane, flat.reshape(2, 3, 4))
    entries = quantiser().get_codebook_entry(flat, shape=(2, 3, 4, 2))
    torch.testing.assert_close(entries, quant)


def test_remap_counts_within_the_used_codes(tmp_path):
    path = tmp_path / "used.npy"
    np.save(path, np.array([4, 0, 2, 1, 3]))
    module, z = quantiser(remap=path, sane_index_shape=True), torch.randn(2, 2, 3, 4)
    quant, _, (_, _, indices) = module(z)
    assert torch.equal(module.unmap_to_all(indices), module.nearest(z))
    torch.testing.assert_close(module.get_codebook_entry(indices, shape=(2, 3, 4, 2)), quant)
    assert quantiser(remap=path)(z)[2][2].shape == (24, 1)


@pytest.mark.parametrize(("unknown", "want"), [("extra", {2}), (1, {1}), ("random", {0, 1})])
def test_unlisted_codes(tmp_path, unknown, want):
    path = tmp_path / "used.npy"
    np.save(path, np.array([3, 1]))
    module = quantiser(remap=path, unknown_index=unknown)
    got = module.remap_to_used(torch.tensor([3, 1] + [0] * 40))
    assert got[:2].tolist() == [0, 1]
    assert set(got[2:].tolist()) == want
    assert module.re_embed == (3 if unknown == "extra" else 2)
    assert module.unmap_to_all(torch.tensor([0, 1, 2])).tolist() == [3, 1, 3]


def test_bad_remap(tmp_path):
    with pytest.raises(UserError, match="remap: cannot read"):
        quantiser(remap=tmp_path / "nothing.npy")
    np.save(tmp_path / "used.npy", np.array([7]))
    with pytest.raises(UserError, match="within 0 to 4"):
        quantiser(remap=tmp_path / "used.npy")


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_loss_by_hand():
    x, y = torch.rand(2, 2, 1, 16, 16).unbind()
    params = loss_config(pixel_loss="l2", codebook_weight=3.0, pixelloss_weight=0.5, disc_factor=0.0)["params"]
    total, log = VQLPIPSWithDiscriminator(**params)(torch.tensor(0.2), x, y, 0, 0, predicted_indices=torch.arange(4))
    torch.testing.assert_close(total, 0.5 * (x - y).square().mean() + 3.0 * 0.2)
    assert log["train/cluster_usage"] == 4
    torch.testing.assert_close(log["train/perplexity"], torch.tensor(4.0))
    absolute = VQLPIPSWithDiscriminator(**loss_config(disc_factor=0.0)["params"])
    torch.testing.assert_close(absolute(None, x, y, 0, 0)[0], (x - y).abs().mean())


def test_perplexity_of_an_uneven_use():
    perplexity, used = measure_perplexity(torch.tensor([[0, 0, 0, 2]]), 5)
    assert perplexity.item() == pytest.approx((4 / 3) ** 0.75 * 4**0.25)
    assert used == 2


@pytest.mark.parametrize("change", [{"pixel_loss": "l3"}, {"perceptual_loss": "clips"}, {"disc_loss": "hing"}])
def test_unknown_losses(change):
    with pytest.raises(UserError, match=next(iter(change.values()))):
        VQLPIPSWithDiscriminator(**loss_config(**change)["params"])


# --- construction and loading -----------------------------------------------------------------------------------------


def test_refuses_a_variance():
    for kind in (VQModel, VQModelNetworks):  # the second one samples in the place of the first
        with pytest.raises(UserError, match=r"double_z must be false for VQModel \("):
            kind(tiny_config(), IDENTITY, n_embed=8, embed_dim=2)


def test_keys():
    keys = set(tiny_model(IDENTITY).state_dict())
    assert "quantize.embedding.weight" in keys
    assert {key.partition(".")[0] for key in keys} == {
        "encoder",
        "decoder",
        "quantize",
        "quant_conv",
        "post_quant_conv",
    }
    averaged = set(tiny_model(IDENTITY, use_ema=True).state_dict()) - keys
    counters = {"model_ema.decay", "model_ema.num_updates"}
    assert averaged == counters | {f"model_ema.{key.replace('.', '')}" for key in keys}


def test_vq_model_gives_codes_and_decodes_them():
    model = tiny_model(IDENTITY, sane_index_shape=True).eval()
    x = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        quant, loss, (_, _, codes) = model.encode(x)
        torch.testing.assert_close(model.decode_code(codes), model.decode(quant))
        images, same_loss, same_codes = model(x, return_pred_indices=True)
        torch.testing.assert_close(images, model.decode(quant))
        interface = tiny_model(IDENTITY, VQModelInterface).eval()
        torch.testing.assert_close(interface.decode(interface.encode(x)), images)
        torch.testing.assert_close(interface(x)[0], images)
    assert codes.shape == (2, 8, 8)
    assert torch.equal(codes, same_codes)
    assert torch.equal(loss, same_loss)


def test_interface_loads_a_trained_file(tmp_path):
    path = tmp_path / "vq.ckpt"
    source = tiny_model(loss_config(), use_ema=True)
    torch.save({"state_dict": source.state_dict()}, path)
    target = VQModelInterface(DDCONFIG, IDENTITY, n_embed=8, embed_dim=2, ckpt_path=path)
    assert torch.equal(target.quantize.embedding.weight, source.quantize.embedding.weight)
    again = VQModel(DDCONFIG, IDENTITY, n_embed=8, embed_dim=2, ckpt_path=path, use_ema=True)
    assert not any("loss" in key for key in again.state_dict())
    with pytest.raises(UserError, match=r"quantize.embedding.weight is \(8, 2\) in the file, \(9, 2\) in the model"):
        VQModelInterface(DDCONFIG, IDENTITY, n_embed=9, embed_dim=2, ckpt_path=path)


def test_average_starts_at_the_loaded_weights(tmp_path):
    path = tmp_path / "vq.ckpt"
    source = tiny_model(IDENTITY)
    torch.save({"state_dict": source.state_dict()}, path)
    target = VQModel(DDCONFIG, PLAIN, n_embed=8, embed_dim=2, ckpt_path=path, use_ema=True)
    assert torch.equal(target.model_ema.quantizeembeddingweight, source.quantize.embedding.weight)


def test_identity_first_stage():
    x = torch.rand(1, 3, 4, 4)
    plain, vq = IdentityFirstStage(), IdentityFirstStage(vq_interface=True)
    assert all(result is x for result in (plain(x), plain.encode(x), plain.decode(x), plain.quantize(x)))
    assert vq.quantize(x) == (x, None, [None, None, None])


# --- training ---------------------------------------------------------------------------------------------------------


def test_trains_without_discriminator():
    model = tiny_model()
    before = snapshot(model)
    trainer = fit(model)
    assert trainer.global_step == 2
    assert len(trainer.optimizers) == 1
    assert {"encoder.conv_in.weight", "quantize.embedding.weight", "post_quant_conv.bias"} <= moved(model, before)
    assert {"train/quant_loss", "val/rec_loss", "train/perplexity"} <= set(trainer.callback_metrics)


def test_trains_with_discriminator_and_average():
    model = tiny_model(loss_config(), use_ema=True, lr_g_factor=0.5)
    before = snapshot(model)
    trainer = fit(model)
    assert trainer.global_step == 2
    assert {"quantize.embedding.weight", "loss.discriminator.main.0.weight"} <= moved(model, before)
    assert [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers] == [0.5e-3, 1e-3]
    assert {"discloss", "val/rec_loss", "val_ema/rec_loss", "val_ema/disc_loss"} <= set(trainer.callback_metrics)
    assert model.model_ema.num_updates == 2
    weight, average = model.decoder.conv_out.weight.detach().clone(), model.model_ema.decoderconv_outweight
    assert not torch.equal(average, weight)
    with model.ema_scope():
        assert torch.equal(model.decoder.conv_out.weight, average)
    assert torch.equal(model.decoder.conv_out.weight, weight)


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole = tiny_model(loss_config(), use_ema=True)
    fit(whole, max_epochs=2)
    first = tiny_model(loss_config(), use_ema=True)
    path = tmp_path / "half.ckpt"
    fit(first, max_epochs=1).save_checkpoint(path)
    second = tiny_model(loss_config(), use_ema=True)
    trainer = fit(second, max_epochs=2, ckpt_path=str(path))
    assert trainer.global_step == 4
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, msg=lambda text, name=name: f"{name}: {text}")


def test_random_sizes():
    model = tiny_model(batch_resize_range=[16, 48])
    batch = {"image": torch.rand(1, 32, 32, 1)}
    assert model.get_input(batch, "image").shape[-1] == 48  # the first steps
    model.__class__ = type("Later", (VQModel,), {"global_step": 5})
    sizes = {model.get_input(batch, "image").shape[-1] for _ in range(40)}
    assert sizes == {16, 32, 48}
    assert model.eval().get_input(batch, "image").shape[-1] == 32
    with pytest.raises(UserError, match="batch_resize_range"):
        tiny_model(batch_resize_range=[48, 16])


def test_log_images():
    model = tiny_model(use_ema=True)
    images = model.log_images({"image": torch.rand(3, 16, 16, 1)}, count=2, plot_ema=True)
    assert set(images) == {"inputs", "reconstructions", "reconstructions_ema"}
    assert all(image.shape == (2, 1, 16, 16) and not image.requires_grad for image in images.values())


# --- diffusion over its latents ---------------------------------------------------------------------------------------


def latent_diffusion(**params):
    first_stage = copy.deepcopy(tiny.AUTOENCODER)
    first_stage["target"] = "ldm.models.autoencoder.VQModelInterface"
    first_stage["params"]["n_embed"] = 16
    first_stage["params"]["ddconfig"]["double_z"] = False
    torch.manual_seed(0)
    return tiny.build(tiny.ldm(first_stage_config=first_stage, **params))


def test_latent_diffusion_has_latents_without_a_posterior(tmp_path):
    model = latent_diffusion().eval()
    batch = tiny.batch(3)
    moments = model.encode_moments(batch["image"].permute(0, 3, 1, 2))
    assert moments.shape == (3, 2, tiny.LATENT, tiny.LATENT)
    z = model.latents(batch)
    torch.testing.assert_close(z, 0.5 * moments)
    assert torch.equal(model.latents({"moments": moments}), z)
    assert model.decode_first_stage(z).shape == (3, 1, tiny.SIDE, tiny.SIDE)
    codes = model.first_stage_model.quantize(moments)[0]
    torch.testing.assert_close(model.decode_first_stage(z), model.decode_first_stage(0.5 * codes))

    class Images(torch.utils.data.Dataset):
        deterministic = True

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {"image": batch["image"][index].numpy(), "class_label": int(batch["class_label"][index])}

        def fingerprint(self):
            return "three images"

    cache = LatentCache(Images(), model.encode_moments, key="vq", root=tmp_path)
    stored = torch.stack([cache[i]["moments"] for i in range(3)])
    torch.testing.assert_close(stored, moments)
    loss, _ = model.shared_step({"moments": stored, "class_label": batch["class_label"]})
    assert loss.isfinite()


def test_latent_scale_of_codes():
    model = latent_diffusion(scale_by_std=True)
    model.on_train_batch_start(tiny.batch(8), 0)
    assert model.latents(tiny.batch(8)).std().item() == pytest.approx(1.0, rel=1e-4)
