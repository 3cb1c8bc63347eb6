"""Folders of the diffusers library against the library itself: the same images from the same noise, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from ldm.checkpoint import read_checkpoint, save_checkpoint
from ldm.commands.table import dispatch
from ldm.config import instantiate_from_config
from ldm.errors import UserError
from ldm.inference import load_model
from ldm.inference.draws import DrawsPlan, decoded_draws
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.latent_draws import LatentDraws
from ldm.privacy.statistics import ClassMixture
from ldm.reports.diffusers.export import export_diffusers
from ldm.reports.diffusers.first_stage import import_autoencoder
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
WIDE = {"ch": 32, "ch_mult": [1, 2], "attn_resolutions": [4]}  # every norm has 32 groups
UPDOWN = {"resblock_updown": True}


def library() -> Any:
    return pytest.importorskip(
        "diffusers", reason="the extra diffusers is not installed: pip install 'dp-ldm[diffusers]'"
    )


def model_files(folder: Path, section: dict[str, Any]) -> tuple[Path, Path]:
    """A configuration, and a checkpoint whose averages differ from its weights."""
    torch.manual_seed(1)
    model = tiny.build(section)
    tiny.scatter(model)
    model.model_ema.reset(model.model)
    state = model.state_dict()
    for name in model.model_ema.m_name2s_name.values():
        state[f"model_ema.{name}"] += 0.01
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint({"state_dict": state, "model_config": section}, folder / "model.ckpt")
    (folder / "model.yaml").write_text(yaml.safe_dump({"model": section}))
    return folder / "model.yaml", folder / "model.ckpt"


def with_first_stage(section: dict[str, Any], **ddconfig: Any) -> dict[str, Any]:
    section["params"]["first_stage_config"]["params"]["ddconfig"].update(ddconfig)
    return section


def quantising() -> dict[str, Any]:
    section = with_first_stage(tiny.ldm(unet_params=UPDOWN), **WIDE, double_z=False)
    first = section["params"]["first_stage_config"]
    first["target"] = "ldm.models.autoencoder.VQModelInterface"
    first["params"]["n_embed"] = 7
    return section


def guided() -> dict[str, Any]:
    section = tiny.ldm(unet_params={"channel_mult": [1, 1, 2], "attention_resolutions": [2], "num_res_blocks": 2})
    section["params"]["cond_stage_config"]["params"]["ucg_rate"] = 0.1
    section["params"]["parameterization"] = "x0"
    section["params"]["beta_schedule"] = "cosine"
    return section


CASES = {
    "convolutions between levels": (
        lambda: with_first_stage(tiny.ldm(), **WIDE),
        "UNet2DConditionModel",
        "AutoencoderKL",
    ),
    "residual blocks between levels": (
        lambda: tiny.ldm(unet_params=UPDOWN),
        "ResamplingUNet2DConditionModel",
        "GroupedAutoencoderKL",
    ),
    "a codebook": (quantising, "ResamplingUNet2DConditionModel", "VQModel"),
    "guidance, another schedule and prediction": (guided, "UNet2DConditionModel", "GroupedAutoencoderKL"),
    "no condition": (
        lambda: tiny.ldm("attention", {"num_head_channels": 16, "num_heads": -1}),
        "UNet2DModel",
        "GroupedAutoencoderKL",
    ),
    "no condition, residual blocks": (
        lambda: tiny.ldm("attention", {"num_head_channels": 16, "use_new_attention_order": True, **UPDOWN}),
        "ResamplingUNet2DModel",
        "GroupedAutoencoderKL",
    ),
}


def images_here(
    config: Path, weights: Path, noise: torch.Tensor, labels: list[int] | None, scale: float
) -> torch.Tensor:
    model = load_model(config, weights, torch.device("cpu"))
    condition = uncond = None
    if labels is not None:
        condition = model.get_learned_conditioning({"class_label": torch.tensor(labels)})
        null = torch.full((len(labels),), model.cond_stage_model.n_classes - 1)
        uncond = model.get_learned_conditioning({"class_label": null})
    with torch.no_grad():
        latents, _ = DDIMSampler(model).sample(
            8,
            len(noise),
            noise.shape[1:],
            condition,
            eta=0.0,
            x_T=noise,
            unconditional_guidance_scale=scale,
            unconditional_conditioning=uncond,
        )
        return model.decode_first_stage(latents).clamp(-1, 1)


def images_there(folder: Path, noise: torch.Tensor, labels: list[int] | None, scale: float) -> torch.Tensor:
    pipeline = library().DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 8, "eta": 0.0, "latents": noise, "guidance_scale": scale, "output_type": "pt"}
    return pipeline(labels, len(noise), **options).images


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_same_images_from_the_same_noise(name: str, tmp_path: Path) -> None:
    library()
    make, network, autoencoder = CASES[name]
    config, weights = model_files(tmp_path, make())
    export_diffusers(config, weights, tmp_path / "folder")
    index = json.loads((tmp_path / "folder" / "model_index.json").read_text())
    assert (index["unet"][1], index["vae"][1]) == (network, autoencoder)
    noise = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    labels = None if name.startswith("no condition") else [0, 4, 2]
    scale = 2.5 if name.startswith("guidance") else 1.0
    ours = images_here(config, weights, noise, labels, scale)
    theirs = images_there(tmp_path / "folder", noise, labels, scale)
    assert ours.std() > 0.01
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits32-ldm", "glyphs32-ldm"])
def test_shipped_models_are_opened_and_give_our_images(name: str, tmp_path: Path) -> None:
    library()
    config = ROOT / (
        "configs/benchmark/public-digits.yaml" if "digits" in name else "configs/quickstart/latent-diffusion.yaml"
    )
    weights = ROOT / "checkpoints" / f"{name}.safetensors"
    out = tmp_path / "folder"
    dispatch(
        ["export", str(weights), str(out), "--to", "diffusers", "--yaml", str(config), "--class-names", *"0123456789"]
    )
    shape = (4, 8, 4, 4) if "glyphs" in name else (4, 4, 8, 8)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    theirs = images_there(out, noise, ["3", "7", 0, 9], 1.0)  # type: ignore[list-item]
    assert (images_here(config, weights, noise, [3, 7, 0, 9], 1.0) - theirs).abs().max() < 1e-4


def test_a_folder_is_written_without_the_library_and_carries_the_account(tmp_path: Path) -> None:
    config, weights = model_files(tmp_path, tiny.ldm())
    content = dict(read_checkpoint(weights))
    save_checkpoint({**content, "privacy": {"ledger": "spent"}}, weights)
    note = tmp_path / "CARD.md"
    note.write_text("card")
    export_diffusers(config, weights, tmp_path / "folder", ["a", "b"], notes=[note])
    names = {path.relative_to(tmp_path / "folder").as_posix() for path in (tmp_path / "folder").rglob("*.*")}
    assert {"model_index.json", "pipeline.py", "CARD.md", "vae/vae.py", "scheduler/scheduler_config.json"} <= names
    assert "unet/unet.py" not in names
    for part in ("unet", "vae"):
        with safe_open(tmp_path / "folder" / part / "diffusion_pytorch_model.safetensors", "pt") as file:
            assert json.loads(file.metadata()["privacy"]) == {"ledger": "spent"}
    with pytest.raises(UserError, match="exists"):
        export_diffusers(config, weights, tmp_path / "folder")


def statistics_file(path: Path, *, cells: int = 2, groups: bool = False) -> Path:
    """Made-up statistics of five classes of the tiny model's latents, one covariance a cell, or two for all cells."""
    generator = torch.Generator().manual_seed(3)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = torch.full((5, cells), 1 / cells, dtype=torch.float64)
    factors = 0.3 * numbers(5, 2 if groups else cells, 3, 3)
    which = torch.arange(5 * cells).view(5, cells) % 2 if groups else None
    mixture = ClassMixture(weights.sum(dim=1) / 5, weights, numbers(5, cells, 3), factors, which)
    LatentDraws(mixture, numbers(32), numbers(3, 32), (2, 4, 4)).save(path, {"ledger": "of the statistics"})
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("cells", "groups"), [(1, False), (2, False), (3, True)])
def test_draws_of_the_statistics_are_ours(cells: int, groups: bool, tmp_path: Path) -> None:
    config, weights = model_files(tmp_path, tiny.ldm())
    file = statistics_file(tmp_path / "draws.safetensors", cells=cells, groups=groups)
    export_diffusers(config, weights, tmp_path / "folder", ["a", "b", "c", "d", "e"], statistics=(file, "draws"))
    ours = decoded_draws(DrawsPlan(file, config, weights, 9, [0, 3, 4], seed=7), torch.device("cpu"))
    pipeline = library().DiffusionPipeline.from_pretrained(str(tmp_path / "folder"), trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    assert ours.labels is not None
    names = ["abcde"[label] for label in ours.labels.tolist()]
    for source in ({}, {"source": "draws"}):
        theirs = pipeline(names, generator=torch.Generator().manual_seed(7), output_type="pt", **source).images
        assert ours.images.std() > 0.01 and (ours.images - theirs).abs().max() < 1e-4
    steps = {"num_inference_steps": 2, "output_type": "pt"}
    model = [
        pipeline(names, generator=torch.Generator().manual_seed(7), **steps, **more).images
        for more in ({}, {"source": "model"})
    ]
    assert torch.equal(*model) and not torch.equal(model[0], theirs)
    with pytest.raises(ValueError, match="draws take no diffusion step; leave num_inference_steps out"):
        pipeline(names, source="draws", num_inference_steps=2)
    with pytest.raises(ValueError, match="statistics of 5 classes were released"):
        pipeline([5])
    with pytest.raises(ValueError, match="'drawn' is unknown"):
        pipeline(names, source="drawn")
    pipeline.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "draws" / "config.json").is_file()


@pytest.mark.slow
def test_a_folder_without_statistics_says_so(tmp_path: Path) -> None:
    config, weights = model_files(tmp_path, tiny.ldm())
    export_diffusers(config, weights, tmp_path / "folder")
    pipeline = library().DiffusionPipeline.from_pretrained(str(tmp_path / "folder"), trust_remote_code=True)
    with pytest.raises(ValueError, match="this release has no statistics to draw from"):
        pipeline([0], source="draws")


def test_statistics_go_with_the_folder_and_keep_their_account(tmp_path: Path) -> None:
    config, weights = model_files(tmp_path, tiny.ldm())
    file = statistics_file(tmp_path / "draws.safetensors")
    export_diffusers(config, weights, tmp_path / "folder", statistics=(file, "model"))
    index = json.loads((tmp_path / "folder" / "model_index.json").read_text())
    assert index["draws"] == ["draws", "ReleasedStatistics"] and index["source"] == "model"
    with safe_open(tmp_path / "folder" / "draws" / "diffusion_pytorch_model.safetensors", "pt") as written:
        assert json.loads(written.metadata()["privacy"]) == {"ledger": "of the statistics"}
    other = tiny.ldm()
    other["params"]["image_size"] = 8
    config, weights = model_files(tmp_path / "other", other)
    with pytest.raises(UserError, match=r"statistics of latents \(2, 4, 4\), which are not those"):
        export_diffusers(config, weights, tmp_path / "wrong", statistics=(file, "model"))
    assert not (tmp_path / "wrong").exists()


def refused() -> dict[str, tuple[dict[str, Any], str]]:
    concat = tiny.ldm("attention", {"num_head_channels": 16})
    identity = tiny.ldm()
    identity["params"]["first_stage_config"] = {"target": "ldm.models.autoencoder.IdentityFirstStage"}
    return {
        "heads": (tiny.ldm("attention"), "fixed number of heads"),
        "pooling": (tiny.ldm(unet_params={"conv_resample": False}), "resamples without convolutions"),
        "linear attention": (with_first_stage(concat, attn_type="linear"), "linear attention"),
        "pixels": (identity, "first stage is IdentityFirstStage"),
    }


@pytest.mark.parametrize("name", ["heads", "pooling", "linear attention", "pixels"])
def test_a_model_without_equivalent_gets_one_line(name: str, tmp_path: Path) -> None:
    section, line = refused()[name]
    config, weights = model_files(tmp_path, section)
    with pytest.raises(UserError, match=f"no diffusers folder: .*{line}.*dp-ldm sample") as error:
        export_diffusers(config, weights, tmp_path / "folder")
    assert "\n" not in str(error.value) and not (tmp_path / "folder").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["AutoencoderKL", "VQModel"])
def test_an_autoencoder_of_the_library_becomes_a_first_stage(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    attention = {"down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")}
    attention |= {"up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D")}
    options = {"block_out_channels": (32, 64), "sample_size": 16, "latent_channels": 4, "scaling_factor": 0.3}
    theirs = getattr(library(), kind)(layers_per_block=2, **attention, **options).eval()
    tiny.scatter(theirs)
    theirs.save_pretrained(tmp_path / "pipeline" / "vae")
    dispatch(["export", str(tmp_path / "pipeline"), str(tmp_path / "own"), "--to", "first-stage"])
    text = (tmp_path / "own" / "autoencoder.yaml").read_text()
    section = yaml.safe_load(text)["model"]
    assert "scale_factor: 0.3" in text and section["params"]["ckpt_path"] == "autoencoder.safetensors"
    section["params"]["ckpt_path"] = str(tmp_path / "own" / "autoencoder.safetensors")
    ours = instantiate_from_config(section).eval()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        found = theirs.encode(images)
        latents = found.latent_dist.mean if kind == "AutoencoderKL" else found.latents
        own = ours.encode(images)
        torch.testing.assert_close(own.mode() if kind == "AutoencoderKL" else own, latents, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.decode(latents), theirs.decode(latents).sample, atol=1e-5, rtol=1e-4)


#: A configuration of the library that this project can compute.
FOLDER = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"_class_name": "AutoencoderTiny"}, "holds AutoencoderTiny"),
        ({"norm_num_groups": 8}, "norms of 8 groups"),
        ({"shift_factor": 0.1}, "latents moved by shift_factor"),
        ({"down_block_types": ["X"] * 2}, "blocks of the kind X"),
    ],
)
def test_another_autoencoder_is_refused(change: dict[str, Any], line: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**FOLDER, **change}))
    with pytest.raises(UserError, match=line):
        import_autoencoder(tmp_path, tmp_path / "own")
    with pytest.raises(UserError, match="has no config.json"):
        import_autoencoder(tmp_path / "nowhere", tmp_path / "own")


def test_weights_of_another_model_than_the_configuration_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FOLDER))
    save_file({"quant_conv.bias": torch.zeros(3)}, tmp_path / "diffusion_pytorch_model.safetensors")
    line = f"the weights file in {tmp_path} does not fit the autoencoder of its config.json; download the folder again"
    with pytest.raises(UserError, match=line):
        import_autoencoder(tmp_path, tmp_path / "own")
    assert not (tmp_path / "own").exists()
