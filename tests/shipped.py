"""The configurations that ship, and the same ones shrunk until a step takes a fraction of a second."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from ldm.config import load_config
from ldm.reports.parameter_counts import build_unallocated
from tests import tiny_records

CONFIGS = Path(__file__).parents[1] / "configs"
FINE_TUNING = sorted(path.stem for path in (CONFIGS / "finetuning").glob("*.yaml"))
#: what the files of a family have in common but epsilon -> the epsilon whose file holds the settings
FAMILIES = {
    "mnist32-dp": 10,
    "fmnist32-dp": 10,
    "mnist32-kmnist-dp": 10,
    "mnist32-svhn-dp": 10,
    "cifar32-dp": 10,
    "camelyon32-dp": 10,
    "celeba32-dp": 1,
    "celeba64-dp": 1,
    "celebahq-dp": 1,
    "celebahq-txt2img-dp": 10,
}
WRITTEN_OUT = [f"{family}-eps{epsilon}" for family, epsilon in FAMILIES.items()]
WIDTH = 8  # of a condition's tokens in a shrunk model


def path_of(name: str) -> Path:
    """The file of a fine-tuning configuration."""
    return CONFIGS / "finetuning" / f"{name}.yaml"


def family(name: str) -> str:
    """A fine-tuning configuration's name without its epsilon."""
    return name.rpartition("-eps")[0]


def chain(path: Path) -> list[Path]:
    """A configuration file and the files it is laid over, one below the other."""
    base = yaml.safe_load(path.read_text()).get("base")
    return [path, *chain((path.parent / base).resolve())] if base else [path]


def pretraining(name: str) -> Path:
    """The configuration of the public model that a fine-tuning configuration starts from."""
    return next(path for path in chain(path_of(name)) if path.parent.name == "latent-diffusion")


def unallocated(path: Path, *dotlist: str) -> Any:
    """The model of a configuration on the meta device."""
    return build_unallocated(load_config([path], dotlist).model)


def shrunk(path: Path, folder: Path, records: Mapping[str, Any] | None = None, **dp: Any) -> DictConfig:
    """A shipped configuration with narrow networks, small images and, with ``records``, made-up ones.

    Only sizes change: every switch, rule, schedule and head setting is the file's. ``dp`` are further values of
    ``dp_config``.
    """
    config = load_config([path])
    params = config.model.params
    factor = 2 ** (len(params.first_stage_config.params.ddconfig.ch_mult) - 1)
    levels = len(params.unet_config.params.channel_mult) - 1
    latent = max(4, 2**levels)
    params.image_size = params.unet_config.params.image_size = latent
    params.unet_config.params.model_channels = 32
    params.unet_config.params.num_res_blocks = 1
    stage = params.first_stage_config.params
    stage.ddconfig.update(ch=16, num_res_blocks=1, resolution=latent * factor)
    if "ckpt_path" in stage.keys():  # noqa: SIM118 - "in" is false for ???
        stage.ckpt_path = None
    if "n_embed" in stage:
        stage.n_embed = 16
    if "context_dim" in params.unet_config.params:
        params.unet_config.params.context_dim = WIDTH
        condition = params.cond_stage_config.params
        if "embed_dim" in condition:
            condition.update(embed_dim=WIDTH, n_classes=min(condition.n_classes, 11))
        else:
            vocabulary = folder / "vocab.txt"
            vocabulary.parent.mkdir(parents=True, exist_ok=True)
            vocabulary.write_text("\n".join(tiny_records.WORDS) + "\n")
            words = {"vocab_size": len(tiny_records.WORDS), "max_seq_len": 6, "vocabulary": str(vocabulary)}
            condition.update(n_embed=WIDTH, n_layer=1, **words)
    if records is not None:
        made_up = {"size": latent * factor, "count": 24, **records}
        config.data.params.batch_size = 12
        config.data.params.num_workers = 0
        config.data.params.train = {"target": "tests.tiny_records.Records", "params": made_up}
        params.dp_config.update(dataset_size=24, max_batch_size=5, **dp)
        config.model.base_learning_rate = 1e-4  # two steps have to show
        if params.get("scheduler_config"):
            params.scheduler_config.params.warm_up_steps = [1]
        config.lightning.trainer.update(max_epochs=1, enable_progress_bar=False, enable_model_summary=False)
    return config
