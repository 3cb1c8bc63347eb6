"""The first stage: numbers and names of the lineage, loading rules, training with and without a discriminator."""

from __future__ import annotations

import copy
import gzip
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from ldm.errors import UserError
from ldm.models.autoencoder import AutoencoderKL
from tests import parity
from tests.models.first_stages import fit, moved, snapshot, tiny_config

LISTINGS = Path(__file__).parents[1] / "fixtures" / "state_dicts"
KL_ENTRIES = [entry for entry in parity.entries("autoencoder") if entry["class"].endswith(".AutoencoderKL")]
IDENTITY = {"target": "torch.nn.Identity"}
SMALL_LOSS = {"target": "ldm.modules.losses.reconstruction.ReconstructionKL", "params": {"kl_weight": 0.01}}


def adversarial_loss(**changes) -> dict:
    params = {"disc_start": 1, "perceptual_weight": 0.0, "disc_in_channels": 1, "disc_num_layers": 2, "kl_weight": 1e-6}
    return {"target": "ldm.modules.losses.LPIPSWithDiscriminator", "params": params | changes}


def tiny_model(lossconfig: dict = SMALL_LOSS, **params) -> AutoencoderKL:
    torch.manual_seed(0)
    model = AutoencoderKL(tiny_config(), lossconfig, embed_dim=2, **params)
    model.learning_rate = 1e-3
    return model


# --- the lineage's numbers and names --------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", KL_ENTRIES, ids=parity.name)
def test_numbers(entry):
    model = parity.build(entry)
    inputs, outputs = parity.io(entry)
    with torch.no_grad():
        q = model.encode(inputs["x"])
        got = {
            "moments": q.parameters,
            "mean": q.mean,
            "logvar": q.logvar,
            "std": q.std,
            "kl": q.kl(),
            "sample": q.sample(noise=inputs["noise"]),
            "dec_z": model.decode(inputs["z"]),
            "dec_mode": model.decode(q.mode()),
        }
    assert set(got) == set(outputs)
    for name, value in got.items():
        parity.check(name, value, entry)


@pytest.mark.parametrize(
    ("name", "ch_mult", "attn_resolutions", "z_channels"),
    [
        ("kl-f4", [1, 2, 4], [], 3),
        ("kl-f8", [1, 2, 4, 4], [], 4),
        ("kl-f16", [1, 1, 2, 2, 4], [16], 16),
        ("kl-f32", [1, 1, 2, 2, 4, 4], [16, 8], 64),
    ],
)
def test_full_size_names_and_shapes(name, ch_mult, attn_resolutions, z_channels):
    ddconfig = tiny_config(
        z_channels=z_channels,
        resolution=256,
        in_channels=3,
        out_ch=3,
        ch=128,
        ch_mult=ch_mult,
        num_res_blocks=2,
        attn_resolutions=attn_resolutions,
    )
    loss = {"target": "ldm.modules.losses.LPIPSWithDiscriminator", "params": {"disc_start": 50001}}
    with torch.device("meta"):
        model = AutoencoderKL(ddconfig, loss, embed_dim=z_channels)
    got = {key: (str(value.dtype), str(tuple(value.shape))) for key, value in model.state_dict().items()}
    with gzip.open(LISTINGS / f"first_stage_{name}.keys.txt.gz", "rt") as lines:
        rows = [line.rstrip("\n").split("\t") for line in lines]
    assert got == {key: (f"torch.{dtype}", shape) for key, dtype, shape in rows}


# --- construction and loading ----------------------------------------------------------------------------------------


def test_misspelt_ddconfig_key():
    with pytest.raises(UserError, match=r"num_resblocks.*did you mean 'num_res_blocks'"):
        AutoencoderKL(tiny_config(num_resblocks=1), IDENTITY, embed_dim=2)


def test_missing_ddconfig_key():
    config = tiny_config()
    del config["z_channels"]
    with pytest.raises(UserError, match="missing z_channels"):
        AutoencoderKL(config, IDENTITY, embed_dim=2)


def test_needs_double_z():
    with pytest.raises(UserError, match="double_z"):
        AutoencoderKL(tiny_config(double_z=False), IDENTITY, embed_dim=2)


@pytest.fixture
def saved(tmp_path) -> Path:
    """A checkpoint that carries its training loss, as the published ones do."""
    path = tmp_path / "first.ckpt"
    torch.save({"state_dict": tiny_model(adversarial_loss()).state_dict()}, path)
    return path


@pytest.mark.parametrize("lossconfig", [IDENTITY, SMALL_LOSS])
def test_stored_loss_is_left_out_where_the_model_has_none(saved, lossconfig):
    stored = torch.load(saved, weights_only=True)["state_dict"]
    model = AutoencoderKL(tiny_config(), lossconfig, embed_dim=2, ckpt_path=saved)
    own = model.state_dict()
    assert len(own) > 0
    assert all(torch.equal(value, stored[key]) for key, value in own.items())


def test_checkpoint_without_loss_loads_into_a_model_with_one(tmp_path):
    path = tmp_path / "bare.ckpt"
    source = tiny_model(IDENTITY)
    torch.save({"state_dict": source.state_dict()}, path)
    model = AutoencoderKL(tiny_config(), adversarial_loss(), embed_dim=2, ckpt_path=path)
    assert torch.equal(model.encoder.conv_in.weight, source.encoder.conv_in.weight)


def test_incomplete_loss_is_an_error(saved):
    checkpoint = torch.load(saved, weights_only=True)
    del checkpoint["state_dict"]["loss.discriminator.main.0.weight"]
    torch.save(checkpoint, saved)
    with pytest.raises(UserError, match=r"loss\.discriminator\.main\.0\.weight"):
        AutoencoderKL(tiny_config(), adversarial_loss(), embed_dim=2, ckpt_path=saved)


def test_renamed_key_is_an_error_unless_ignored(saved):
    checkpoint = torch.load(saved, weights_only=True)
    checkpoint["state_dict"]["decoder.conv_off.bias"] = checkpoint["state_dict"].pop("decoder.conv_out.bias")
    torch.save(checkpoint, saved)
    line = r"does not fit the autoencoder of the configuration; give the YAML [\s\S]*decoder\.conv_out\.bias"
    with pytest.raises(UserError, match=line):
        AutoencoderKL(tiny_config(), IDENTITY, embed_dim=2, ckpt_path=saved)
    AutoencoderKL(tiny_config(), IDENTITY, embed_dim=2, ckpt_path=saved, ignore_keys=["decoder.conv_"])


def test_widths_of_small_models_have_groups():
    model = AutoencoderKL(tiny_config(ch_mult=[1, 2, 2, 4]), IDENTITY, embed_dim=2)
    assert model.encoder.down[0].block[0].norm1.num_groups == 4  # 16 channels
    assert model.encoder.down[1].block[0].norm2.num_groups == 32  # 32 channels, as the lineage
    assert model.encode(torch.zeros(1, 1, 16, 16)).mean.shape == (1, 2, 2, 2)


def test_batch_images_become_channels_first():
    model = tiny_model()
    x = torch.rand(2, 16, 8, 3, dtype=torch.float64)
    got = model.get_input({"image": x}, "image")
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    torch.testing.assert_close(got[1, 2, 5, 7], x[1, 5, 7, 2].float())
    assert model.get_input({"image": x[..., 0]}, "image").shape == (2, 1, 16, 8)


def test_latent_size_and_posterior_mean():
    model = tiny_model(IDENTITY).eval()
    x = torch.rand(2, 1, 16, 16)
    reconstructions, posterior = model(x, sample_posterior=False)
    assert posterior.parameters.shape == (2, 4, 8, 8)
    torch.testing.assert_close(reconstructions, model.decode(posterior.mean))


# --- training ---------------------------------------------------------------------------------------------------------


def test_gradient_reaches_every_parameter():
    model = tiny_model()
    x = torch.rand(2, 1, 16, 16)
    loss, _ = model.loss(x, *model(x))
    loss.backward()
    still = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
    # The softmax over keys does not see a constant added to all of them, so this bias has no effect on anything.
    assert [name for name in still if not name.endswith("attn_1.k.bias") and ".attn.0.k.bias" not in name] == []


def test_trains_without_discriminator():
    model = tiny_model()
    before = snapshot(model)
    trainer = fit(model)
    assert trainer.global_step == 2
    assert {"encoder.conv_in.weight", "decoder.conv_out.bias", "quant_conv.bias"} <= moved(model, before)
    assert {"train/rec_loss", "val/rec_loss", "val/kl_loss", "aeloss"} <= set(trainer.callback_metrics)


def test_a_frozen_encoder_keeps_the_latents():
    model = tiny_model(freeze_encoder=True)
    before = snapshot(model)
    fit(model)
    assert {name.partition(".")[0] for name in moved(model, before)} == {"decoder", "post_quant_conv"}


def test_trains_with_discriminator():
    model = tiny_model(adversarial_loss())
    before = snapshot(model)
    trainer = fit(model)
    # Two batches are two steps, although two optimizers moved.
    assert trainer.global_step == 2
    changed = moved(model, before)
    assert {"encoder.conv_in.weight", "decoder.conv_out.bias", "loss.discriminator.main.0.weight"} <= changed
    assert "loss.logvar" not in changed
    metrics = trainer.callback_metrics
    assert metrics["train/d_weight"] > 0
    assert {"discloss", "train/disc_loss", "val/rec_loss", "val/disc_loss"} <= set(metrics)


def test_discriminator_waits_for_its_start():
    model = tiny_model(adversarial_loss(disc_start=2))
    before = snapshot(model)
    trainer = fit(model)
    assert not any(name.startswith("loss.") for name in moved(model, before))
    assert trainer.callback_metrics["train/disc_factor"] == 0


def test_disc_factor_zero_trains_with_one_optimizer():
    model = tiny_model(adversarial_loss(disc_factor=0.0))
    trainer = fit(model)
    assert model.automatic_optimization
    assert len(trainer.optimizers) == 1
    assert trainer.global_step == 2


def test_generator_step_leaves_no_gradient_in_the_discriminator():
    class Watched(AutoencoderKL):
        def forward(self, input, sample_posterior=True, generator=None):
            outputs = super().forward(input, sample_posterior, generator)
            self.seen = input, outputs[0].detach()
            return outputs

        def on_before_optimizer_step(self, optimizer):
            if optimizer is self.trainer.optimizers[1]:
                self.gradients = [p.grad.clone() for p in self.loss.discriminator.parameters()]

    torch.manual_seed(0)
    model = Watched(tiny_config(), adversarial_loss(disc_start=0), embed_dim=2)
    model.learning_rate = 1e-3
    discriminator = copy.deepcopy(model.loss.discriminator)
    fit(model, images=2, limit_val_batches=0)
    real, fake = model.seen
    want = torch.autograd.grad(
        model.loss.disc_loss(discriminator(real), discriminator(fake)), list(discriminator.parameters())
    )
    torch.testing.assert_close(model.gradients, list(want))
    assert all(parameter.requires_grad for parameter in model.loss.discriminator.parameters())


def test_accumulates_gradients_in_manual_mode():
    trainer = fit(tiny_model(adversarial_loss(disc_start=0), accumulate_grad_batches=2), images=6)
    assert trainer.global_step == 2  # two batches, then the one that is left


def test_accumulation_equals_one_large_batch():
    class Plain(AutoencoderKL):
        """Decodes the mean, so that both runs see the same images."""

        def forward(self, input, sample_posterior=False, generator=None):
            return super().forward(input, sample_posterior)

        def configure_optimizers(self):
            # Adam would magnify rounding noise of parameters whose gradient is almost zero.
            return [torch.optim.SGD(part.parameters(), lr=1e-5) for part in (self.encoder, self.loss.discriminator)]

    def trained(window: int, batch_size: int, epochs: int = 1) -> AutoencoderKL:
        torch.manual_seed(0)
        # A start in the far future: batch norm in the discriminator would tell the two batch sizes apart.
        model = Plain(tiny_config(), adversarial_loss(disc_start=99), embed_dim=2, accumulate_grad_batches=window)
        records = [{"image": torch.linspace(-1, 1, 256).reshape(16, 16, 1) * k} for k in (0.2, 0.5, 0.7, 1.0)]
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        trainer.fit(model, DataLoader(records, batch_size=batch_size))
        return model

    start = trained(1, 4, epochs=0)
    one, two = trained(1, 4), trained(2, 2)
    assert (one.encoder.conv_in.weight - start.encoder.conv_in.weight).abs().max() > 5e-5
    for (name, ours), theirs in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


class HalfRate:
    """A schedule, as in `ldm.lr_scheduler`: half the rate from the second step on."""

    def schedule(self, step: int) -> float:
        return 1.0 if step < 1 else 0.5


@pytest.mark.parametrize("lossconfig", [SMALL_LOSS, adversarial_loss()])
def test_scheduler_steps_once_per_step(monkeypatch, lossconfig):
    import ldm.models.first_stage as room

    build = room.instantiate_from_config
    monkeypatch.setattr(room, "instantiate_from_config", lambda c: HalfRate() if c == {"target": "half"} else build(c))
    trainer = fit(tiny_model(lossconfig, scheduler_config={"target": "half"}))
    assert [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups] == [0.5e-3] * len(
        trainer.optimizers
    )
    assert [item.scheduler.last_epoch for item in trainer.lr_scheduler_configs] == [2] * len(trainer.optimizers)


def test_optimizers_have_the_lineage_betas():
    generator, discriminator = tiny_model(adversarial_loss()).configure_optimizers()
    assert generator.defaults["betas"] == (0.5, 0.9)
    assert discriminator.defaults["lr"] == 1e-3


def test_identity_loss_cannot_train():
    with pytest.raises(UserError, match="inference"):
        tiny_model(IDENTITY).configure_optimizers()


def test_learning_rate_must_be_set():
    model = tiny_model()
    model.learning_rate = None
    with pytest.raises(UserError, match="the autoencoder has no learning rate; set model.base_learning_rate"):
        model.configure_optimizers()


def test_training_without_perceptual_weights_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("LDM_VGG16_WEIGHTS", raising=False)
    model = tiny_model(adversarial_loss(perceptual_weight=1.0))
    with pytest.raises(UserError, match="perceptual_weight: 0"):
        model.configure_optimizers()


# --- images ---------------------------------------------------------------------------------------------------------


def test_log_images():
    model = tiny_model()
    batch = {"image": 2 * torch.rand(2, 16, 16, 1) - 1}
    images = model.log_images(batch)
    assert set(images) == {"inputs", "reconstructions", "samples"}
    assert all(image.shape == (2, 1, 16, 16) and not image.requires_grad for image in images.values())
    assert all(len(value) == 1 for value in model.log_images(batch, count=1).values())


def test_many_channels_get_colours():
    model = AutoencoderKL(tiny_config(in_channels=5, out_ch=5), IDENTITY, embed_dim=2, colorize_nlabels=5)
    images = model.log_images({"image": torch.rand(1, 16, 16, 5)})
    assert all(p.shape == (1, 3, 16, 16) and p.min() == -1 and p.max() == 1 for p in images.values())
