"""Captions as a condition: batches, what is trained, and per-record clipping through a text encoder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.data.module import EmptyAwareCollate
from ldm.errors import UserError
from ldm.models.diffusion.private_training import PrivateTraining
from ldm.privacy.clipping import Clipping, PerRecordClipper
from ldm.privacy.ledger import Ledger
from ldm.privacy.plan import PrivacyPlan
from tests import tiny

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "smiling", "woman", "man", "with", "blond", "hair"]
CAPTIONS = ["a smiling woman", "a man with blond hair", "", "a woman with hair"]
TOKENS = 6


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return path


def text_model(vocabulary: Path, **params: Any) -> Any:
    """A tiny caption-conditional model in training mode, no weight at zero."""
    stage = {
        "target": "ldm.modules.encoders.modules.BERTEmbedder",
        "params": {
            "n_embed": 8,
            "n_layer": 1,
            "vocab_size": len(WORDS),
            "max_seq_len": TOKENS,
            "device": "cuda",
            "vocabulary": str(vocabulary),
        },
    }
    torch.manual_seed(0)
    model = tiny.build(
        tiny.ldm(
            unet_params={"context_dim": 8, "channel_mult": [1]},
            **{
                "cond_stage_key": "caption",
                "cond_stage_config": stage,
                "dp_config": {"enabled": True},
                "use_ema": False,
                **params,
            },
        )
    )
    tiny.scatter(model)
    return model.train()


def batch(captions: list[str] = CAPTIONS) -> dict[str, Any]:
    return {"image": tiny.batch(len(captions))["image"], "caption": captions}


def sums(
    model: Any, engine: str, rows: dict[str, torch.Tensor], multiplicity: int, bound: float
) -> dict[str, torch.Tensor]:
    clipper = PerRecordClipper(model, model.select_trainable().parameters, Clipping(bound), engine)
    clipper.accumulate(model.per_example_losses, rows, multiplicity)
    return clipper.pop_sums()


def test_captions_become_rows_of_tokens(vocabulary):
    model = text_model(vocabulary)
    rows = model.expand_batch(batch(), multiplicity=2, microbatch=None)
    assert rows["cond"].shape == (8, TOKENS) and rows["cond"].dtype == torch.long
    assert torch.equal(rows["cond"][0::2], rows["cond"][1::2])  # record-major: the copies of a record lie together
    assert torch.equal(rows["cond"][0::2], model.cond_stage_model.tokenize(CAPTIONS))


def test_an_empty_draw(vocabulary):
    model = text_model(vocabulary)
    empty = EmptyAwareCollate({"image": batch()["image"][0], "caption": "a woman"})([])
    rows = model.expand_batch(empty, multiplicity=2, microbatch=None)
    assert {key: len(value) for key, value in rows.items()} == {"z": 0, "t": 0, "noise": 0, "cond": 0}


@pytest.mark.parametrize("trained", [False, True], ids=["frozen encoder", "trained encoder"])
def test_engines_agree(vocabulary, trained):
    model = text_model(vocabulary, cond_stage_trainable=trained)
    rows = model.expand_batch(batch(), multiplicity=2, microbatch=None)
    largest = sums(model, "naive", {key: value[:2] for key, value in rows.items()}, 2, 1e6)
    bound = float(torch.cat([value.flatten() for value in largest.values()]).norm())  # clips some records, not all
    naive = sums(model, "naive", rows, 2, bound)
    assert any(name.startswith("cond_stage_model.") for name in naive) is trained
    for engine in ("bookkeeping", "instantiate"):
        fast = sums(model, engine, rows, 2, bound)
        assert fast.keys() == naive.keys()
        for name, value in naive.items():
            torch.testing.assert_close(
                fast[name], value, atol=2e-6 * bound, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
            assert value.norm() > 1e-9 * bound, f"{name} gets noise only"


def test_positions_are_clipped_for_each_record(vocabulary):
    # a lookup shared by the batch would give the gradient of all records at once
    model = text_model(vocabulary, cond_stage_trainable=True)
    rows = model.expand_batch(batch(), multiplicity=1, microbatch=None)
    name = "cond_stage_model.transformer.pos_emb.emb.weight"
    one = sums(model, "bookkeeping", {key: value[1:2] for key, value in rows.items()}, 1, 1e6)[name]
    grads = torch.autograd.grad(model.per_example_losses(rows)[1], model.get_parameter(name))
    torch.testing.assert_close(one, grads[0], atol=1e-7, rtol=1e-4)


def test_only_the_token_head_is_left_out(vocabulary):
    model = text_model(vocabulary, cond_stage_trainable=True)
    head = {f"cond_stage_model.transformer.to_logits.{part}" for part in ("weight", "bias")}
    for options in ({}, {"dp_config": None}, {"train_dead_parameters": True}, {"train_condition_only": True}):
        model = text_model(vocabulary, **{"cond_stage_trainable": True, **options})
        selection = model.select_trainable()
        assert set(selection.dead) == head
        assert not head & set(selection.parameters)
        assert any("attn2.to_q" in name for name in selection.parameters)
        assert not any(model.get_parameter(name).requires_grad for name in head)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen encoder", "trained encoder"])
def test_one_private_step(vocabulary, trained):
    model = text_model(vocabulary, cond_stage_trainable=trained)
    plan = PrivacyPlan(
        sample_rate=0.1,
        steps=2,
        noise_multiplier=1.0,
        max_grad_norm=0.5,
        delta=1e-3,
        expected_batch_size=4,
        noise_multiplicity=2,
        insecure_seed=0,
    )
    selection = model.select_trainable()
    training = PrivateTraining(model, selection, plan, Ledger(), max_batch_size=3)
    optimizer = torch.optim.SGD(selection.parameters.values(), lr=0.1)
    model.optimizers, model.lr_schedulers = lambda: optimizer, lambda: None
    before = {name: value.clone() for name, value in model.named_parameters()}
    training.step(model, batch())
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    # the rows of words that no caption holds move as well, by noise alone
    assert moved == set(selection.parameters)
    assert training.ledger.steps == 1 and training.clipper.skipped == 0


def test_chunks_do_not_change_the_sum(vocabulary):
    model = text_model(vocabulary, cond_stage_trainable=True)
    clipped = {}
    for size in (1, 3, None):
        plan = PrivacyPlan(0.1, 2, 1.0, 0.5, 1e-3, 4, noise_multiplicity=2, insecure_seed=0)
        training = PrivateTraining(model, model.select_trainable(), plan, Ledger(), max_batch_size=size)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            clipped[size] = training.clipped_sums(model, batch())
    total = math.sqrt(sum(float(value.norm()) ** 2 for value in clipped[None].values()))
    for size in (1, 3):
        for name, value in clipped[None].items():
            torch.testing.assert_close(clipped[size][name], value, atol=1e-5 * total, rtol=1e-3)


def test_loss_and_images_without_privacy(vocabulary):
    for trained in (False, True):
        model = text_model(vocabulary, cond_stage_trainable=trained, dp_config=None)
        loss, _ = model.shared_step(batch())
        assert loss.isfinite()
        images = model.eval().log_images(batch(), count=2, steps=2)
        assert images["samples"].shape == (2, 1, tiny.SIDE, tiny.SIDE)
        assert model.log_images({}, count=2, steps=2, private=True) == {}  # there is no public caption to show


def test_token_batches_need_no_tokenizer(vocabulary):
    model = text_model(vocabulary)
    tokens = model.cond_stage_model.tokenize(CAPTIONS)
    model.cond_stage_model.tknz_fn = None
    rows = model.expand_batch({**batch(), "caption": tokens}, multiplicity=1, microbatch=None)
    assert torch.equal(rows["cond"], tokens)
    with pytest.raises(UserError, match="use_tokenizer"):
        model.expand_batch(batch(), multiplicity=1, microbatch=None)
