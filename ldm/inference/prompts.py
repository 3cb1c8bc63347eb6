"""Prompts: captions from a file or the command line, and checks that a model accepts them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import UserError
from ldm.files import read_text

if TYPE_CHECKING:
    from ldm.models.diffusion.latent_denoiser import LatentDenoiser


def read_prompts(path: str | Path) -> list[str]:
    """The captions of a text file, one per line without blank lines. Raises UserError when there are none."""
    try:
        lines = read_text(path).splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; give captions as --prompt TEXT, or as --prompts FILE with one a line"
        ) from None
    except UserError as error:
        raise UserError(f"{path}: cannot be read as a file of captions, one a line ({error})") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise UserError(f"{path}: holds no captions; write one a line")
    return found


def cycled(prompts: Sequence[str], count: int) -> list[str]:
    """Exactly ``count`` captions: the prompts in order, repeated from the start as needed."""
    return list(islice(cycle(prompts), count))


def takes_text(model: LatentDenoiser) -> bool:
    """Whether a model's condition is text."""
    return hasattr(model.cond_stage_model, "tokenize")


def check_prompts(model: LatentDenoiser, prompts: Sequence[str]) -> None:
    """Raise UserError when the model takes no text, ``prompts`` is empty, or no tokenizer is available."""
    if not takes_text(model):
        raise UserError("this model takes no text; use sampling/conditional_sampling.py or unconditional_sampling.py")
    if not prompts:
        raise UserError("no captions were given; give captions as --prompt TEXT, or as --prompts FILE with one a line")
    stage: Any = model.cond_stage_model
    stage.tokenize(prompts[0])
