"""Word pieces of BERT's uncased vocabulary (Devlin et al. 2019), split by the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldm.errors import UserError
from ldm.files import read_text

INSTALL = "pip install 'dp-ldm[text]'"
REQUIRED = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


class WordPiece:
    """Encodes captions as ids of a vocab.txt file with one piece per line; ids are line numbers from 0.

    Raises UserError when the file cannot be read or lacks a special piece, or `tokenizers` is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            from tokenizers import BertWordPieceTokenizer
        except ImportError as error:
            raise UserError(f"captions need the package tokenizers; type {INSTALL}") from error
        self.tokenizer = BertWordPieceTokenizer(_read_vocabulary(path), lowercase=True)

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """Exactly `length` >= 2 ids per text: start, the pieces (truncated to fit), end, padding."""
        self.tokenizer.enable_truncation(length)
        self.tokenizer.enable_padding(length=length)
        # One text at a time, because encode_batch starts threads and the library warns if a data loader forks later.
        return [self.tokenizer.encode(text).ids for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The words of ids, without special pieces. Encoding loses case, accents and white space."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)


def _read_vocabulary(path: str | Path) -> dict[str, int]:
    try:
        text = read_text(path)
    except (OSError, UserError) as error:
        raise UserError(f"{path}: cannot be read as a vocabulary ({type(error).__name__})") from error
    pieces = {line.removesuffix("\r"): index for index, line in enumerate(text.rstrip("\n").split("\n"))}
    missing = [piece for piece in REQUIRED if piece not in pieces]
    if missing:
        raise UserError(f"{path}: the vocabulary has no {missing[0]}; give the vocab.txt of bert-base-uncased")
    return pieces
