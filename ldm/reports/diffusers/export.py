"""A trained latent diffusion model as a folder that ``DiffusionPipeline.from_pretrained`` opens."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint import checkpoint_metadata, read_checkpoint, save_safetensors
from ldm.checkpoint.diffusers_names import autoencoder_to_diffusers, class_projection, network_to_diffusers
from ldm.config import load_config, to_plain
from ldm.errors import UserError
from ldm.files import check_new_folder, new_folder
from ldm.inference import load_model
from ldm.inference.load import without_checkpoints
from ldm.models.diffusion.latent_denoiser import LatentDenoiser
from ldm.models.diffusion.latent_draws import LatentDraws
from ldm.modules.lora import merge_adapters
from ldm.reports.diffusers.config import (
    LIBRARY,
    Part,
    autoencoder_part,
    heads_of_blocks,
    network_part,
    no_equivalent,
)

FILES = Path(__file__).parent / "parts"
WEIGHTS = "diffusion_pytorch_model.safetensors"
#: The version whose configuration keys are written, for a machine without the library.
WRITTEN_FOR = "0.42.1"
MEMORIES = ("privacy", "start_privacy", "unprotected_data")


def export_diffusers(
    config: Path,
    weights: Path,
    out: Path,
    class_names: Sequence[str] = (),
    ema: bool = True,
    notes: Sequence[Path] = (),
    statistics: tuple[Path, str] | None = None,
) -> dict[str, Part]:
    """Write the new folder ``out`` from a configuration and a checkpoint; returns its components by name.

    Adapters are merged. The plan and ledger of a private run go into the metadata of both weight files. ``notes`` are
    files, such as a card, that are copied beside them. ``statistics``: a file of `LatentDraws`, whose own account goes
    with it, and the pipeline's default source, "model" or "draws". The library itself is not needed. Raises
    UserError, before anything is written, for a model that the library cannot compute, with the reason in one line.
    """
    check_new_folder(out)
    model = load_model(config, weights, torch.device("cpu"), ema)
    merge_adapters(model)
    section = to_plain(without_checkpoints(load_config([config]).model).params.first_stage_config)
    made = {"unet": (*_network(model), weights), "vae": (*_autoencoder(model, section), weights)}
    if statistics is not None:
        made["draws"] = (*_statistics(statistics[0], model), statistics[0])
    components = {name: part for name, (part, *_) in made.items()}
    with new_folder(out) as staging:
        for name, (part, state, source) in made.items():
            _write_part(staging / name, part, state, _memory(source))
        (staging / "scheduler").mkdir()
        _write_json(staging / "scheduler" / "scheduler_config.json", scheduler_config(model))
        shutil.copyfile(FILES / "pipeline.py", staging / "pipeline.py")
        index = _index(components, class_names, _null_class(model)) | ({"source": statistics[1]} if statistics else {})
        _write_json(staging / "model_index.json", index)
        for note in notes:
            shutil.copyfile(note, staging / note.name)
    return components


def _network(model: LatentDenoiser) -> tuple[Part, dict[str, Tensor]]:
    """The network and, as its projection of one-hot classes, the class embedding."""
    params = to_plain(model.unet_params)
    stage: Any = model.cond_stage_model
    if model.model.conditioning_key not in (None, "crossattn"):
        raise no_equivalent(f"its condition enters by {model.model.conditioning_key}")
    if stage is not None and type(stage).__name__ != "ClassEmbedder":
        raise no_equivalent(f"its condition stage is {type(stage).__name__}, not a class embedding")
    part = network_part(params, None if stage is None else stage.n_classes)
    state = {name: value.detach() for name, value in model.model.diffusion_model.state_dict().items()}
    renamed = network_to_diffusers(state, part.places, lambda width: heads_of_blocks(params, width))
    if stage is not None:
        renamed |= class_projection(stage.embedding.weight.detach())
    return part, renamed


def _autoencoder(model: LatentDenoiser, section: Mapping[str, Any]) -> tuple[Part, dict[str, Tensor]]:
    part = autoencoder_part(section, float(model.scale_factor))
    state = model.first_stage_model.state_dict()
    kept = {name: value for name, value in state.items() if not name.startswith(("loss.", "model_ema.", "colorize"))}
    return part, autoencoder_to_diffusers(kept, len(section["params"]["ddconfig"]["ch_mult"]))


def _statistics(path: Path, model: LatentDenoiser) -> tuple[Part, dict[str, Tensor]]:
    """The released statistics in single precision. Raises UserError for those of other latents."""
    draws = LatentDraws.read(path)
    if draws.shape != model.latent_shape:
        raise UserError(f"{path}: statistics of latents {draws.shape}, which are not those of this model")
    state = {name: draws.state()[name].float() for name in ("weights", "means", "factors", "centre", "lift")}
    classes, cells, directions = draws.mixture.means.shape
    if draws.mixture.groups is not None:  # the folder's own code knows one factor a class or a cell
        state["factors"] = torch.stack([draws.mixture.factors_of_cells(label).float() for label in range(classes)])
    config: dict[str, Any] = {"classes": classes, "cells": cells, "covariances": state["factors"].shape[1]}
    config |= {"directions": directions, "latent_shape": list(draws.shape)}
    return Part("draws", "ReleasedStatistics", config), state


def _memory(source: Path) -> dict[str, str]:
    """The privacy account and the digest in a file, for the metadata of another one."""
    content = read_checkpoint(source)
    return {key: json.dumps(value) for key in MEMORIES if (value := checkpoint_metadata(content, key))}


def scheduler_config(model: LatentDenoiser) -> dict[str, Any]:
    """DDIM on the model's own noise schedule; the last step ends at the first noise level, as here."""
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": _version(),
        "num_train_timesteps": int(model.num_timesteps),
        "trained_betas": [float(beta) for beta in model.betas],
        "prediction_type": "epsilon" if model.parameterization == "eps" else "sample",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }


def _index(components: Mapping[str, Part], names: Sequence[str], null_class: int | None) -> dict[str, Any]:
    return {
        "_class_name": ["pipeline", "LatentDiffusionPipeline"],
        "_diffusers_version": _version(),
        "class_names": list(names) or None,
        "null_class": null_class,
        "scheduler": [LIBRARY, "DDIMScheduler"],
        **{name: [part.module, part.name] for name, part in components.items()},
    }


def _null_class(model: LatentDenoiser) -> int | None:
    stage: Any = model.cond_stage_model
    return int(stage.null_class) if stage is not None and stage.ucg_rate > 0 else None


def _write_part(folder: Path, part: Part, state: Mapping[str, Tensor], memory: Mapping[str, str]) -> None:
    folder.mkdir(parents=True)
    _write_json(folder / "config.json", {"_class_name": part.name, "_diffusers_version": _version(), **part.config})
    save_safetensors(state, folder / WEIGHTS, {"format": "pt", **memory})
    if part.module != LIBRARY:
        shutil.copyfile(FILES / f"{part.module}.py", folder / f"{part.module}.py")


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _version() -> str:
    """The installed version of the library, else that for which the keys are written."""
    try:
        return importlib.metadata.version(LIBRARY)
    except importlib.metadata.PackageNotFoundError:
        return WRITTEN_FOR
