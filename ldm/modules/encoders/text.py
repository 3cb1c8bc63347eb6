"""Text as a condition: tokenizer and transformer encoders; `ldm.modules.encoders.modules` lists them.

``device`` is a parameter of the lineage's configs. It has no effect, because ``.to()`` moves these modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.modules.encoders.vocabulary import find_vocabulary
from ldm.modules.encoders.wordpiece import WordPiece
from ldm.modules.x_transformer import Encoder, TransformerWrapper

BERT_VOCABULARY_SIZE = 30522


class BERTTokenizer(nn.Module):
    """Captions, a string or a list of B strings, to ids (B, max_length) int64 of bert-base-uncased, padded or cut.

    ``vocabulary`` is a vocab.txt file; without it the file is searched for at the first caption (see
    `ldm.modules.encoders.vocabulary.find_vocabulary`). Has no weights. Raises UserError when no vocabulary is found.
    """

    def __init__(
        self,
        device: str | None = None,
        vq_interface: bool = True,
        max_length: int = 77,
        vocabulary: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.vq_interface = vq_interface
        self.max_length = max_length
        self.vocabulary = vocabulary
        self._pieces: WordPiece | None = None

    @property
    def pieces(self) -> WordPiece:
        """The word-piece tokenizer, read on first use."""
        if self._pieces is None:
            self._pieces = WordPiece(find_vocabulary(self.vocabulary))
        return self._pieces

    def forward(self, text: str | Sequence[str]) -> Tensor:
        texts = [text] if isinstance(text, str) else list(text)
        for item in texts:
            if not isinstance(item, str):
                raise UserError(f"caption: {item!r} is a {type(item).__name__}; give text")
        ids = self.pieces.encode(texts, self.max_length)
        return torch.tensor(ids, dtype=torch.long).reshape(len(texts), self.max_length)

    @torch.no_grad()
    def encode(self, text: str | Sequence[str]) -> Any:
        """The ids, in the nested form that a quantising autoencoder returns when ``vq_interface`` is set."""
        tokens = self(text)
        return [None, None, [None, None, tokens]] if self.vq_interface else tokens

    def decode(self, tokens: Tensor) -> list[str]:
        """Words (B strings) of ids (B, N); case, accents and spacing are lost in encoding."""
        return [self.pieces.decode(row) for row in tokens.tolist()]


class TransformerEmbedder(nn.Module):
    """Tokens (B, N) int64 -> (B, N, n_embed), by ``n_layer`` pre-norm transformer layers with learned positions.

    ``N`` is at most ``max_seq_len``. Raises UserError for longer rows and tokens outside the vocabulary.
    """

    # parts that hold lineage weights but do not affect the embedding; they are never trained
    unused_parameters = ("transformer.to_logits.",)

    def __init__(
        self, n_embed: int, n_layer: int, vocab_size: int, max_seq_len: int = 77, device: str | None = None
    ) -> None:
        super().__init__()
        self.transformer = TransformerWrapper(vocab_size, max_seq_len, Encoder(n_embed, n_layer))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.transformer(tokens, return_embeddings=True)

    def encode(self, tokens: Tensor) -> Tensor:
        """The same as calling the module."""
        return self(tokens)


class BERTEmbedder(nn.Module):
    """Captions or their tokens -> (B, N, n_embed): a transformer encoder over the vocabulary of bert-base-uncased.

    Strings become N = ``max_seq_len`` tokens; tokens (B, N) int64 are taken as they are, the only kind accepted when
    ``use_tokenizer`` is off. ``vocabulary`` is the tokenizer's vocab.txt. Raises UserError as `BERTTokenizer` does.

    Args:
        n_embed: width of a token's vector.
        n_layer: number of transformer layers.
        vocab_size: number of tokens in the vocabulary.
        max_seq_len: tokens of a caption; longer ones are cut, shorter ones padded.
        device: accepted for compatibility with the lineage and not used, because tensors follow the weights.
        use_tokenizer: accept captions, and not only tokens.
        embedding_dropout: dropout rate on the token vectors, in [0, 1).
        vocabulary: the tokenizer's vocab.txt; default $LDM_BERT_VOCAB.
    """

    unused_parameters = TransformerEmbedder.unused_parameters

    def __init__(
        self,
        n_embed: int,
        n_layer: int,
        vocab_size: int = BERT_VOCABULARY_SIZE,
        max_seq_len: int = 77,
        device: str | None = None,
        use_tokenizer: bool = True,
        embedding_dropout: float = 0.0,
        vocabulary: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.tknz_fn: BERTTokenizer | None = None
        if use_tokenizer:
            self.tknz_fn = BERTTokenizer(vq_interface=False, max_length=max_seq_len, vocabulary=vocabulary)
        self.transformer = TransformerWrapper(vocab_size, max_seq_len, Encoder(n_embed, n_layer), embedding_dropout)

    def tokenize(self, text: str | Sequence[str]) -> Tensor:
        """Ids (B, max_seq_len) int64 of B captions, on the device of the weights."""
        if self.tknz_fn is None:
            raise UserError("this text encoder has use_tokenizer: false; give it token ids, or set use_tokenizer: true")
        pieces, known = len(self.tknz_fn.pieces), self.transformer.num_tokens
        if pieces > known:
            raise UserError(f"the vocabulary has {pieces} pieces, but this text encoder's vocab_size is {known}")
        return self.tknz_fn(text).to(self.transformer.token_emb.weight.device)

    def forward(self, text: str | Sequence[str] | Tensor) -> Tensor:
        tokens = text if isinstance(text, Tensor) else self.tokenize(text)
        return self.transformer(tokens, return_embeddings=True)

    def encode(self, text: str | Sequence[str] | Tensor) -> Tensor:
        """The same as calling the module."""
        return self(text)
