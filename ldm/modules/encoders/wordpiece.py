"""BERT's uncased tokenizer: text to word pieces of a fixed vocabulary, in plain Python (Devlin et al. 2019).

Text is cleaned, lower-cased, stripped of accents and cut at white space, punctuation and Chinese characters; a word
is then covered from the left by the longest pieces of the vocabulary (Wu et al. 2016, arXiv 1609.08144, section 4.1).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ldm.errors import UserError

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
SPECIAL = (PAD, UNKNOWN, START, END, "[MASK]")
LONGEST_WORD = 100  # characters; a longer word is unknown as a whole
# Blocks of ideographs, each of which is a word of its own.
IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class WordPiece:
    """Encodes text with a vocabulary, a mapping of pieces to ids; pieces inside a word start with ``##``.

    Raises UserError when the vocabulary lacks one of the special pieces.
    """

    def __init__(self, vocabulary: Mapping[str, int]) -> None:
        missing = [piece for piece in (PAD, UNKNOWN, START, END) if piece not in vocabulary]
        if missing:
            raise UserError(f"the vocabulary has no {missing[0]}; give the vocab.txt of bert-base-uncased")
        self.ids = dict(vocabulary)
        self.pieces = {index: piece for piece, index in self.ids.items()}

    @classmethod
    def read(cls, path: str | Path) -> WordPiece:
        """The tokenizer of a vocab.txt file: one piece a line, its id the line number from 0. Raises UserError."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as a vocabulary ({type(error).__name__})") from error
        try:
            return cls({line.removesuffix("\r"): index for index, line in enumerate(text.rstrip("\n").split("\n"))})
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def __len__(self) -> int:
        return len(self.ids)

    def encode(self, text: str, length: int) -> list[int]:
        """Exactly ``length`` >= 2 ids: start, the pieces (cut where they do not fit), end, padding."""
        inner = [self.ids[piece] for piece in self.tokenize(text)][: length - 2]
        ids = [self.ids[START], *inner, self.ids[END]]
        return ids + [self.ids[PAD]] * (length - len(ids))

    def decode(self, ids: Sequence[int]) -> str:
        """The words of ``ids``, special pieces left out; case, accents and spacing are lost in encoding."""
        kept = [self.pieces.get(index, UNKNOWN) for index in ids]
        words = " ".join(piece for piece in kept if piece not in SPECIAL)
        return words.replace(" ##", "")

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text, without start, end and padding."""
        return [piece for word in words_of(text) for piece in self._cover(word)]

    def _cover(self, word: str) -> list[str]:
        if len(word) > LONGEST_WORD:
            return [UNKNOWN]
        found: list[str] = []
        start = 0
        while start < len(word):
            mark = "##" if start else ""
            ends = (end for end in range(len(word), start, -1) if mark + word[start:end] in self.ids)
            end = next(ends, None)
            if end is None:
                return [UNKNOWN]
            found.append(mark + word[start:end])
            start = end
        return found


def words_of(text: str) -> Iterator[str]:
    """Lower-case words and single punctuation characters of a text, accents and control characters removed."""
    spaced = "".join(f" {char} " if _is_ideograph(char) else char for char in map(_cleaned, text))
    bare = "".join(char for char in unicodedata.normalize("NFD", spaced) if unicodedata.category(char) != "Mn")
    for run in bare.lower().split():
        word = ""
        for char in run:
            if not _is_punctuation(char):
                word += char
                continue
            if word:
                yield word
            yield char
            word = ""
        if word:
            yield word


def _cleaned(char: str) -> str:
    """The character, a space for any white space, nothing for a control character."""
    if char in "\t\n\r" or unicodedata.category(char) == "Zs":
        return " "
    if char == "\ufffd" or unicodedata.category(char).startswith("C"):
        return ""
    return char


def _is_ideograph(char: str) -> bool:
    return len(char) == 1 and any(low <= ord(char) <= high for low, high in IDEOGRAPHS)


def _is_punctuation(char: str) -> bool:
    """Unicode punctuation, and every printable ASCII character that is no letter, digit or space ($, ^, ` ...)."""
    return (char.isascii() and char.isprintable() and not char.isalnum() and char != " ") or unicodedata.category(
        char
    ).startswith("P")
