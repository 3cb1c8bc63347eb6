"""`FrozenCLIPEmbedder`: text through the public CLIP text transformer (Radford et al. 2021), never trained."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError, first_line


class FrozenCLIPEmbedder(nn.Module):
    """Captions to token vectors (B, max_length, width); the last hidden state of CLIP's text transformer.

    Network and tokenizer come from the ``transformers`` package, which is no requirement of this project, and from its
    cache of weights. ``device`` has no effect; move the module with ``.to()``. Raises UserError without the package, or
    without the weights.
    """

    def __init__(
        self, version: str = "openai/clip-vit-large-patch14", device: str = "cpu", max_length: int = 77
    ) -> None:
        super().__init__()
        try:
            library: Any = importlib.import_module("transformers")
        except ImportError:
            raise UserError(
                "FrozenCLIPEmbedder needs the package transformers; type pip install transformers"
            ) from None
        try:
            self.tokenizer = library.CLIPTokenizer.from_pretrained(version)
            self.transformer = library.CLIPTextModel.from_pretrained(version).eval().requires_grad_(False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"FrozenCLIPEmbedder: the weights of {version} are not here ({first_line(error)})"
            ) from None
        self.max_length = max_length

    def tokenize(self, text: Sequence[str]) -> Tensor:
        """Token numbers (B, max_length) int64 of captions, cut and padded."""
        given = [text] if isinstance(text, str) else list(text)
        options = {"truncation": True, "max_length": self.max_length, "padding": "max_length", "return_tensors": "pt"}
        tokens: Tensor = self.tokenizer(given, **options)["input_ids"]
        return tokens

    @torch.no_grad()
    def forward(self, text: Any) -> Tensor:
        """Vectors (B, max_length, width) of captions, or of token numbers."""
        tokens = text if isinstance(text, Tensor) else self.tokenize(text)
        vectors: Tensor = self.transformer(
            input_ids=tokens.to(next(self.transformer.parameters()).device)
        ).last_hidden_state
        return vectors

    def encode(self, text: Any) -> Tensor:
        """The same as calling the module."""
        vectors: Tensor = self(text)
        return vectors
