"""Tiny latent diffusion models, digits and run configurations: whole runs of `ldm.training.train` in about a second."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from ldm.checkpoint import save_checkpoint
from ldm.config import instantiate_from_config
from ldm.training import RunOptions

SIDE = 8  # pixels; latents are 2x4x4
LATENT = 4
CLASSES = 10
RECORDS = 24
KINDS = ("spatial", "attention")

#: ``dp_config.warm_up`` with two rounds of class moments, but for its frame.
WARM_UP: dict[str, Any] = {
    "clip_norm": 4.0,
    "classes": 10,
    "rounds": [{"noise_multiplier": 8}, {"noise_multiplier": 9, "cells": 2}],
    "training": {"steps": 3, "batch_size": 8, "learning_rate": 1e-3},
}

AUTOENCODER: dict[str, Any] = {
    "target": "ldm.models.autoencoder.AutoencoderKL",
    "params": {
        "embed_dim": 2,
        "lossconfig": {"target": "torch.nn.Identity"},
        "ddconfig": {
            "double_z": True,
            "z_channels": 2,
            "resolution": SIDE,
            "in_channels": 1,
            "out_ch": 1,
            "ch": 8,
            "ch_mult": [1, 2],
            "num_res_blocks": 1,
            "attn_resolutions": [],
            "dropout": 0.0,
        },
    },
}


def unet(kind: str = "spatial", **params: Any) -> dict[str, Any]:
    """UNet section: ``spatial`` has spatial transformers with a one-token context, ``attention`` attention blocks."""
    spatial = {"use_spatial_transformer": True, "transformer_depth": 1, "context_dim": 5, "use_scale_shift_norm": True}
    return {
        "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
        "params": {
            "image_size": LATENT,
            "in_channels": 2,
            "out_channels": 2,
            "model_channels": 32,
            "channel_mult": [1, 2],
            "num_res_blocks": 1,
            "attention_resolutions": [1, 2],
            "num_heads": 2,
            **(spatial if kind == "spatial" else {}),
            **params,
        },
    }


def ldm(kind: str = "spatial", unet_params: Mapping[str, Any] | None = None, **params: Any) -> dict[str, Any]:
    """Model section of a class-conditional (``spatial``) or unconditional (``attention``) latent diffusion model."""
    conditional = {
        "cond_stage_key": "class_label",
        "cond_stage_trainable": True,
        "conditioning_key": "crossattn",
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.ClassEmbedder",
            "params": {"embed_dim": 5, "n_classes": CLASSES, "key": "class_label"},
        },
    }
    unconditional = {"cond_stage_config": "__is_unconditional__"}
    return {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": {
            "linear_start": 0.0015,
            "linear_end": 0.0195,
            "timesteps": 1000,
            "image_size": LATENT,
            "channels": 2,
            "scale_factor": 0.5,
            "monitor": None,
            "ema_decay": 0.9,
            "unet_config": unet(kind, **(unet_params or {})),
            "first_stage_config": copy.deepcopy(AUTOENCODER),
            **(conditional if kind == "spatial" else unconditional),
            **params,
        },
    }


def build(section: Mapping[str, Any]) -> Any:
    """The model of a section, on the CPU."""
    return instantiate_from_config(copy.deepcopy(dict(section)))


def scatter(module: nn.Module, seed: int = 0, size: float = 0.05) -> None:
    """Move every parameter away from its start, so that no branch is multiplied by zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def public_checkpoint(path: Path, kind: str = "spatial", ema_offset: float = 0.01) -> Path:
    """Write what pre-training leaves behind: weights, averages that differ from them, and the model's section."""
    torch.manual_seed(0)
    section = ldm(kind)
    model = build(section)
    scatter(model)
    model.model_ema.reset(model.model)
    state = model.state_dict()
    for name in model.model_ema.m_name2s_name.values():
        state[f"model_ema.{name}"] += ema_offset
    save_checkpoint({"state_dict": state, "model_config": section}, path)
    return path


def write_digits(folder: Path, count: int = RECORDS, seed: int = 0) -> Path:
    """MNIST's training files with ``count`` random images of 8x8; the labels go round."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE), dtype=np.uint8)
    labels = (np.arange(count) % CLASSES).astype(np.uint8)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
        (folder / f"train-{name}-ubyte").write_bytes(header + array.tobytes())
    return folder


def batch(count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """A collated batch of images and labels, as the data module gives it."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.rand(count, SIDE, SIDE, 1, generator=generator) * 2 - 1,
        "class_label": torch.arange(count) % CLASSES,
    }


def dp(**changes: Any) -> dict[str, Any]:
    """A ``dp_config``; keys that are changed to None are left out. The noise is given, so nothing is calibrated."""
    config = {"enabled": True, "noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 0.1, **changes}
    return {key: value for key, value in config.items() if value is not None}


def run_config(
    model: Mapping[str, Any], digits: Path, batch_size: int = 6, num_workers: int = 0, **trainer: Any
) -> dict[str, Any]:
    """The whole configuration of a run; ``trainer`` are Trainer arguments."""
    return {
        "model": {"base_learning_rate": 1e-3, **copy.deepcopy(dict(model))},
        "data": {
            "target": "main.DataModuleFromConfig",
            "params": {
                "batch_size": batch_size,
                "num_workers": num_workers,
                "train": {
                    "target": "ldm.data.mnist.MNISTTrain",
                    "params": {"root": str(digits), "size": SIDE, "channels": 1},
                },
            },
        },
        "lightning": {
            "trainer": {
                "accelerator": "cpu",
                "log_every_n_steps": 1,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                **trainer,
            },
            "callbacks": {"image_logger": {"params": {"disabled": True}}},
        },
    }


def options(folder: Path, config: Mapping[str, Any], **changes: Any) -> RunOptions:
    """Write the configuration below ``folder`` and say what ``main.py --base ... -t`` would."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(dict(config)))
    given = {"base": [str(path)], "train": True, "logdir": str(folder / "logs"), "scale_lr": False, **changes}
    return RunOptions(**given)
