"""YAML files in the spelling of the original code still run, and say what of them no longer means anything."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

import main
from ldm.checkpoint import read_checkpoint
from tests import tiny
from tests.tiny_runs import Commands, commands, small_checkpoint, small_ldm

__all__ = ["commands"]

OLD = """
model:
  base_learning_rate: 1.0e-05
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    ckpt_path: {ckpt}
    ignore_keys:
    - cond_stage_model
    linear_start: 0.0015
    linear_end: 0.0195
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: image
    cond_stage_key: class_label
    cond_stage_trainable: true
    conditioning_key: crossattn
    concat_mode: false
    image_size: 4
    channels: 2
    scale_factor: 0.5
    monitor: val/loss
    use_ema: False
    DPDM_k: 2
    train_condition_only: True
    train_attention_only: False
    train_input_blocks_only: False
    train_resblocks_only: False
    retrain_attention: False
    attention_flag: spatial
    ablation_blocks: -1
    condition_mask: 0
    diffusion_mask: 0
    dp_config:
      enabled: True
      epsilon: 10
      delta: 1e-3
      max_grad_norm: 0.001
      poisson_sampling: True
      max_batch_size: 5
    scheduler_config:
      target: ldm.lr_scheduler.LambdaLinearScheduler
      params:
        warm_up_steps: [ 1 ]
        cycle_lengths: [ 10000000000000 ]
        f_start: [ 1.e-6 ]
        f_max: [ 1. ]
        f_min: [ 1. ]
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 4
        in_channels: 2
        out_channels: 2
        model_channels: 32
        attention_resolutions: [ 1 ]
        num_res_blocks: 1
        channel_mult: [ 1 ]
        num_heads: 2
        use_scale_shift_norm: True
        use_spatial_transformer: True
        transformer_depth: 1
        context_dim: 5
        use_fp16: False
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 2
        monitor: val/rec_loss
        ddconfig: {{double_z: true, z_channels: 2, resolution: 8, in_channels: 1, out_ch: 1, ch: 8, ch_mult: [1, 2],
                    num_res_blocks: 1, attn_resolutions: [], dropout: 0.0}}
        lossconfig:
          target: torch.nn.Identity
    cond_stage_config:
      target: ldm.modules.encoders.modules.ClassEmbedder
      params:
        n_classes: 10
        embed_dim: 5
        key: class_label
data:
  target: main.DataModuleFromConfig
  params:
    batch_size: 12
    num_workers: 0
    wrap: false
    train:
      target: ldm.data.mnist.MNISTTrain
      params: {{size: 8, root: {digits}, channels: 1}}
lightning:
  trainer:
    benchmark: True
    accelerator: gpu
    max_epochs: 1
  callbacks:
    image_logger:
      target: main.ImageLogger
      params:
        batch_frequency: 1000
        max_images: 2
        increase_log_steps: False
        log_images_kwargs: {{inpaint: False}}
"""


@pytest.fixture
def old(tmp_path: Path) -> str:
    digits = tiny.write_digits(tmp_path / "digits")
    ckpt = small_checkpoint(tmp_path / "public.ckpt", small_ldm())
    return OLD.format(ckpt=ckpt, digits=digits)


def test_a_fine_tuning_file_of_the_original_runs(
    old: str, commands: Commands, caplog: pytest.LogCaptureFixture
) -> None:
    Path("old.yaml").write_text(old)
    with caplog.at_level(logging.WARNING):
        assert commands.train("--base", "old.yaml", "-t", "--accelerator", "cpu", "--gpus", "0,") == 0, commands.err
    for word in ("condition_mask", "diffusion_mask", "use_fp16", "increase_log_steps", "log_images_kwargs"):
        assert word in caplog.text, word
    (run,) = commands.runs()
    plan = json.loads((run / "privacy.json").read_text())["plan"]
    assert plan["noise_multiplicity"] == 2 and plan["target_epsilon"] == 10 and plan["steps"] == 2
    stored = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert stored["global_step"] == 2
    assert not any(key.startswith("model_ema.") for key in stored["state_dict"])


def test_without_its_length_it_is_refused(old: str, commands: Commands) -> None:
    Path("old.yaml").write_text(old.replace("    max_epochs: 1\n", ""))
    said = commands.refused(main.main, "--base", "old.yaml", "-t", "--accelerator", "cpu")
    assert "max_epochs" in said
