"""Every file that trains on public data runs: autoencoders with their discriminator, latent diffusion of each kind.

The files are given to `main.py` as they are; settings behind them make networks narrow and images small, and put
made-up records in the place of the data set. Two steps each.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from ldm.checkpoint import read_checkpoint
from ldm.config import load_config
from ldm.training import driver as training
from tests import shipped, tiny, tiny_records
from tests.tiny_runs import Commands, commands

__all__ = ["commands"]

ROOT = shipped.CONFIGS.parent
STUDY = ROOT / "dp_lora" / "reproducibility_experiments"
RECORDS, VALIDATION = 8, 4
STEPS, DISCRIMINATOR_STEPS = 2, 1  # the discriminator starts with the second
DISC_SIDE = 32  # pixels; a smaller image shrinks to nothing in three layers of the discriminator
SIX_LEVELS = 64  # pixels; and what six levels of halving leave of 32 is a single number a channel
WIDTH = 8  # of a condition's tokens
AUTOENCODERS = [
    *(shipped.CONFIGS / "autoencoder").glob("*.yaml"),
    *(shipped.CONFIGS / "first_stage_models").glob("*.yaml"),
    *(STUDY / "autoencoder").glob("*.yaml"),
]
DIFFUSION = [*(shipped.CONFIGS / "latent-diffusion").glob("*.yaml"), *(STUDY / "latent-diffusion").glob("*.yaml")]
QUICK = (  # one of each kind
    "configs/autoencoder/autoencoder_kl_32x32x4.yaml",
    "configs/first_stage_models/vq-f4.yaml",
    "configs/latent-diffusion/cin-ldm-vq-f8.yaml",
    "configs/latent-diffusion/text2img256.yaml",
    "configs/latent-diffusion/celebahq-ldm-vq-4.yaml",
)
#: One token of condition: attention gives all its weight to it, whatever queries and keys are.
WITHOUT_EFFECT = re.compile(r"\.transformer_blocks\.\d+\.(attn2\.to_[qk]|norm2)\.")
#: The token head of the text encoder, whose features are taken before it.
UNUSED = re.compile(r"cond_stage_model\.transformer\.to_logits\.")


def each(paths: Iterable[Path]) -> list[Any]:
    """The files by name, slow but for one of each kind."""
    names = sorted(str(path.relative_to(ROOT)) for path in paths)
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


# ---------------------------------------------------------------------- settings


def small_autoencoder(prefix: str, params: DictConfig, side: int) -> list[str]:
    """Settings for images of ``side``; attention stays at the level where the file has it."""
    dd = params.ddconfig
    attention = [max(1, each * side // dd.resolution) for each in dd.attn_resolutions]
    settings = {"ch": 16, "num_res_blocks": 1, "resolution": side, "attn_resolutions": attention}
    words = [f"{prefix}.ddconfig.{key}={value}" for key, value in settings.items()]
    return words + ([f"{prefix}.n_embed=16"] if "n_embed" in params else [])


def small_diffusion(config: DictConfig, folder: Path) -> tuple[list[str], int]:
    """Settings of a narrow network on small latents, and the side of its images."""
    params = config.model.params
    factor = 2 ** (len(params.first_stage_config.params.ddconfig.ch_mult) - 1)
    latent = max(4, 2 ** (len(params.unet_config.params.channel_mult) - 1))
    unet = {"image_size": latent, "model_channels": 32, "num_res_blocks": 1}
    words = [f"model.params.image_size={latent}"]
    words += small_autoencoder(
        "model.params.first_stage_config.params", params.first_stage_config.params, latent * factor
    )
    if "context_dim" in params.unet_config.params:
        unet["context_dim"] = WIDTH
        words += [f"model.params.cond_stage_config.params.{setting}" for setting in small_condition(params, folder)]
    if params.get("scheduler_config"):
        words.append("model.params.scheduler_config.params.warm_up_steps=[1]")  # two steps have to show
    return words + [f"model.params.unet_config.params.{key}={value}" for key, value in unet.items()], latent * factor


def small_condition(params: DictConfig, folder: Path) -> list[str]:
    """Settings of a narrow condition stage; words come from a vocabulary file."""
    if params.cond_stage_key == "class_label":
        return [f"embed_dim={WIDTH}"]
    vocabulary = folder / "vocabulary.txt"
    vocabulary.write_text("\n".join(tiny_records.WORDS) + "\n")
    words = len(tiny_records.WORDS)
    return [f"n_embed={WIDTH}", "n_layer=1", f"vocab_size={words}", "max_seq_len=6", f"vocabulary={vocabulary}"]


def made_up(config: DictConfig, side: int, **records: Any) -> list[str]:
    """Settings that put records in the place of a file's data sets, so many that an epoch has two steps."""
    trainer = config.get("lightning", {}).get("trainer", {})
    batch = RECORDS // (STEPS * trainer.get("accumulate_grad_batches", 1))
    words = ["data.target=main.DataModuleFromConfig", f"data.params.batch_size={batch}", "data.params.num_workers=0"]
    for split, count in (("train", RECORDS), ("validation", VALIDATION)):
        params = {"size": side, "count": count, **records}
        words += [f"data.params.{split}=null", f"data.params.{split}.target=tests.tiny_records.Records"]
        words += [f"data.params.{split}.params.{key}={value}" for key, value in params.items()]
    return words


TRAINER = (
    "lightning.trainer.max_epochs=1",
    "lightning.trainer.log_every_n_steps=1",
    "lightning.trainer.enable_progress_bar=false",
    "lightning.trainer.enable_model_summary=false",
    f"lightning.callbacks.image_logger.params.batch_frequency={STEPS}",
    "lightning.callbacks.image_logger.params.max_images=2",
    "lightning.callbacks.image_logger.params.steps=2",
)

# ---------------------------------------------------------------------- runs


class Run:
    """A finished run: the weights before and after, its last checkpoint, and the numbers it logged."""

    def __init__(self, commands: Commands, path: Path, words: Iterable[str], logdir: str = "logs") -> None:
        built: list[Any] = []
        build = training.build_model

        def scattered(config: DictConfig) -> Any:
            """The driver's model, moved off zero: behind a weight of zero nothing would move in two steps."""
            model = build(config)
            for name, part in model.named_children():
                if name in ("model", "encoder", "decoder"):
                    tiny.scatter(part)
            if getattr(model, "use_ema", False):
                model.model_ema.reset(model.model)
            built.append((model, {key: value.clone() for key, value in model.state_dict().items()}))
            return model

        with commands.monkeypatch.context() as patch:
            patch.setattr(training, "build_model", scattered)
            flags = ["-t", "--accelerator", "cpu", "--allow-target", "tests", "--logdir", logdir]
            assert commands.train("--base", path, *flags, *words, *TRAINER) == 0, commands.err
        ((self.model, self.before),) = built
        (self.folder,) = commands.runs(logdir)
        self.last = self.folder / "checkpoints" / "last.ckpt"
        self.content = read_checkpoint(self.last)
        self.after = self.content["state_dict"]

    def moved(self) -> set[str]:
        """Parameters whose values training changed."""
        names = [name for name, _ in self.model.named_parameters()]
        return {name for name in names if not torch.equal(self.before[name], self.after[name])}

    def numbers(self) -> dict[str, list[float]]:
        """Every logged number by name."""
        (file,) = self.folder.glob("metrics/version_*/metrics.csv")
        found: dict[str, list[float]] = {}
        with file.open(newline="") as stream:
            for row in csv.DictReader(stream):
                for key, value in row.items():
                    if value:
                        found.setdefault(key, []).append(float(value))
        return found

    def check(self, monitor: str, loss: str) -> None:
        """Two steps, finite numbers and weights, validated, a checkpoint chosen by its number, and images."""
        assert self.content["global_step"] == STEPS
        numbers = self.numbers()
        assert len(numbers[loss]) >= STEPS and monitor in numbers
        assert all(math.isfinite(value) for values in numbers.values() for value in values)
        assert all(torch.isfinite(value).all() for value in self.after.values() if value.is_floating_point())
        assert (self.folder / "checkpoints" / "epoch=000000.ckpt").is_file()
        assert list(self.folder.glob("images/train/*_gs-000002_*.png"))


def train_autoencoder(commands: Commands, path: Path, logdir: str = "logs") -> Run:
    """Two steps of an autoencoder's file, the second with the discriminator."""
    config = load_config([path])
    side = SIX_LEVELS if len(config.model.params.ddconfig.ch_mult) > 5 else DISC_SIDE
    loss = "model.params.lossconfig.params"
    words = [f"{loss}.perceptual_weight=0", f"{loss}.disc_start={STEPS - DISCRIMINATOR_STEPS}"]  # VGG is not at hand
    words += [*small_autoencoder("model.params", config.model.params, side), *made_up(config, side)]
    return Run(commands, path, words, logdir)


@pytest.mark.parametrize("name", each(AUTOENCODERS))
def test_an_autoencoder_and_its_discriminator_train(name: str, commands: Commands) -> None:
    run = train_autoencoder(commands, ROOT / name)
    run.check(run.model.monitor, "train/total_loss")
    trained = {
        key
        for key, _ in run.model.named_parameters()
        if key.partition(".")[0] in run.model.trained_parts or key.startswith("loss.discriminator.")
    }
    assert run.moved() == trained
    steps = [{float(entry["step"]) for entry in state["state"].values()} for state in run.content["optimizer_states"]]
    assert steps == [{STEPS}, {DISCRIMINATOR_STEPS}]
    assert len(run.numbers()["train/disc_loss"]) >= DISCRIMINATOR_STEPS


@pytest.mark.parametrize("name", each(DIFFUSION))
def test_latent_diffusion_trains_over_a_fixed_autoencoder(name: str, commands: Commands) -> None:
    path = ROOT / name
    config = load_config([path])
    words, side = small_diffusion(config, commands.folder)
    stage = first_stage(path, commands)
    if stage is not None:
        words.append(f"model.params.first_stage_config.params.ckpt_path={stage}")
    captions = config.model.params.get("cond_stage_key") == "caption"
    run = Run(commands, path, [*words, *made_up(config, side, captions=str(captions).lower())])
    run.check(config.model.params.monitor, "train/loss_simple_step")

    parameters = {key for key, _ in run.model.named_parameters()}
    trained = {key for key in parameters if key.startswith(("model.", "cond_stage_model."))}
    still = trained - run.moved()
    assert run.moved() <= trained
    assert {key for key in still if not (UNUSED if captions else WITHOUT_EFFECT).search(key)} == set()
    if stage is not None:
        weights = read_checkpoint(stage)["state_dict"]
        frozen = {key for key in parameters if key.startswith("first_stage_model.")}
        assert frozen and all(
            torch.equal(run.after[key], weights[key.removeprefix("first_stage_model.")]) for key in frozen
        )
    if run.model.use_ema:
        averages = {key: value for key, value in run.after.items() if key.startswith("model_ema.diffusion")}
        assert averages and any(not torch.equal(value, run.before[key]) for key, value in averages.items())


def first_stage(path: Path, commands: Commands) -> Path | None:
    """What two steps of the autoencoder file leave behind that a diffusion file's first stage is to come from."""
    written = re.search(r"ckpt_path: \?\?\?  # last.ckpt of (\S+\.yaml)", shipped.chain(path)[-1].read_text())
    return None if written is None else train_autoencoder(commands, shipped.CONFIGS / written[1], "first").last


def test_one_of_each_kind_is_tried_in_every_change() -> None:
    """A file that is renamed takes its run along."""
    assert set(QUICK) <= {str(path.relative_to(ROOT)) for path in (*AUTOENCODERS, *DIFFUSION)}
