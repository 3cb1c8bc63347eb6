"""From captions to images: `txt2img.py`, its alias and `sampling/caption_sampling.py` on a tiny text model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import txt2img
from ldm.checkpoint import save_checkpoint
from ldm.errors import UserError
from ldm.inference import SamplingOptions, cycled, draw_samples, latent_shape, load_model, read_prompts
from ldm.inference.prompts import check_prompts
from ldm.samples import SampleSet
from sampling import caption_sampling, conditional_sampling
from tests import tiny
from tests.tiny_runs import ROOT, Commands, commands, write_yaml

__all__ = ["commands"]

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "smiling", "woman", "man", "with", "blond", "hair"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """text.yaml, text.ckpt, words.txt, and the YAML file and checkpoint of a class-conditional model."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "words.txt").write_text("\n".join(WORDS) + "\n")
    stage = {"n_embed": 8, "n_layer": 1, "vocab_size": len(WORDS), "max_seq_len": 6}
    section = tiny.ldm(
        unet_params={"context_dim": 8},
        cond_stage_key="caption",
        cond_stage_config={"target": "ldm.modules.encoders.modules.BERTEmbedder", "params": stage},
        use_ema=False,
    )
    torch.manual_seed(0)
    model = tiny.build(section)
    tiny.scatter(model, size=0.2)
    save_checkpoint({"state_dict": model.state_dict()}, folder / "text.ckpt")
    write_yaml(folder / "text.yaml", {"model": section})
    tiny.public_checkpoint(folder / "class.ckpt")
    write_yaml(folder / "class.yaml", {"model": tiny.ldm()})
    return folder


@pytest.fixture
def model(files: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LDM_BERT_VOCAB", str(files / "words.txt"))
    return load_model(files / "text.yaml", files / "text.ckpt", CPU)


@pytest.fixture
def typed(files: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The flags that every command here needs."""
    monkeypatch.setenv("LDM_BERT_VOCAB", str(files / "words.txt"))
    return (
        "--yaml",
        str(files / "text.yaml"),
        "--ckpt",
        str(files / "text.ckpt"),
        "--device",
        "cpu",
        "--ddim_steps",
        "2",
    )


def test_prompt_files(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("  a woman \n\na man\r\n", encoding="utf-8")
    assert read_prompts(path) == ["a woman", "a man"]
    assert cycled(["a", "b", "c"], 7) == ["a", "b", "c", "a", "b", "c", "a"]
    path.write_text("\n \n")
    with pytest.raises(UserError, match="holds no captions"):
        read_prompts(path)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="cannot be read as a file of captions"):
        read_prompts(path)


def test_published_command_reads_its_prompt_file(commands: Commands, typed: tuple[str, ...]) -> None:
    Path("celeba_inputcaption.txt").write_text("a smiling woman\na man with blond hair\n")
    assert commands.type(ROOT / "txt2img.py", *typed, "--n_samples", "5", "--bs", "2", "--outname", "X.pt") == 0
    samples = SampleSet.load("outputs/txt2img-samples/X.pt")
    assert samples.images.shape == (5, 1, tiny.SIDE, tiny.SIDE) and samples.labels is None
    assert samples.meta["captions"] == ["a smiling woman", "a man with blond hair"] * 2 + ["a smiling woman"]
    assert (samples.meta["sampler"], samples.meta["guidance"], samples.meta["eta"]) == ("unipc", 5.0, 0.0)
    with Image.open("outputs/txt2img-samples/X.png") as image:
        assert image.width > 5 * tiny.SIDE


def test_alias_rounds_plms_and_no_guidance(commands: Commands, typed: tuple[str, ...]) -> None:
    words = ("--prompt", "a man", "a woman", "--n_samples", 3, "--n_iter", 2, "--plms", "--scale", 1, "--outdir", "out")
    assert commands.type(ROOT / "scripts/txt2img.py", *typed, *words) == 0
    samples = SampleSet.load("out/samples.pt")
    assert samples.meta["captions"] == ["a man", "a woman", "a man"] * 2
    assert samples.meta["sampler"] == "plms" and len(samples) == 6


def test_sizes(commands: Commands, typed: tuple[str, ...], model: Any) -> None:
    size = ("--prompt", "a man", "--n_samples", 1, "--H", 16, "--W", 8, "--outdir", ".")
    assert commands.type(txt2img.main, *typed, *size) == 0
    assert SampleSet.load("samples.pt").images.shape == (1, 1, 16, 8)
    with pytest.raises(UserError, match="height: 10 pixels; this model makes multiples of 4, best 8"):
        latent_shape(model, SamplingOptions(height=10))


def test_refusals(commands: Commands, typed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for words, line in (
        ((), "celeba_inputcaption.txt: no such file; give captions as --prompt TEXT"),
        (("--prompts", "none.txt"), "none.txt: no such file"),
        (("--prompts", "a.txt", "--prompt", "a"), "--prompt and --prompts were both given"),
        (("--prompt", "a", "--n_samples", 0), "--n_samples 0: give 1 or more"),
        (("--prompt", "a", "--n_iter", 0), "--n_iter 0: give 1 or more"),
        (("--prompt", "a", "--outname", "X.jpg"), "end the name in .pt"),
        (("--prompt", "a", "--plms", "--ddim_eta", 1), "only DDIM can use"),
        (("--prompt", "a", "--H", 10), "height: 10 pixels"),
    ):
        assert line in commands.refused(txt2img.main, *typed, *words)
    monkeypatch.setenv("LDM_BERT_VOCAB", "gone.txt")
    assert "LDM_BERT_VOCAB: gone.txt: no such file" in commands.refused(txt2img.main, *typed, "--prompt", "a")


def test_caption_sampling(commands: Commands, typed: tuple[str, ...], files: Path) -> None:
    Path("captions.txt").write_text("a man\na woman\n")
    words = ("--prompts", "captions.txt", "--uc_scale", 3, "-n", 3, "-o", "s.pt", "--plms", "--batch_size", 2)
    assert commands.type(caption_sampling.main, *typed, *words) == 0
    samples = SampleSet.load("s.pt")
    assert samples.meta["captions"] == ["a man", "a woman", "a man"] and samples.meta["eta"] == 0.0
    words = ("--prompt", "a man", "-n", 2, "-o", "s.png", "--dpm_solver")
    assert commands.type(caption_sampling.main, *typed, *words) == 0
    assert Path("s.png").is_file()
    classes = ("--yaml", files / "class.yaml", "--ckpt", files / "class.ckpt", *typed[4:])
    assert commands.type(caption_sampling.main, *classes, "--classes", 1, 2, "-n", 3, "-o", "c.pt") == 0
    assert SampleSet.load("c.pt").labels.tolist() == [1, 1, 2]


def test_the_wrong_kind_of_condition(commands: Commands, typed: tuple[str, ...], files: Path) -> None:
    output = ("-o", "s.pt", "-n", 1)
    classes = ("--yaml", files / "class.yaml", "--ckpt", files / "class.ckpt", *typed[4:])
    refused = commands.refused
    assert "takes text and no classes" in refused(caption_sampling.main, *typed, "--classes", 1, *output)
    assert "takes text and no classes" in refused(conditional_sampling.main, *typed, "--classes", 1, *output)
    assert "takes no text" in refused(caption_sampling.main, *classes, "--prompt", "a", *output)
    assert "empty caption" in refused(caption_sampling.main, *typed, "--prompt", "a", "--uc", 3, *output)
    assert "one of the arguments" in refused(caption_sampling.main, *typed, *output)


def test_guidance_is_against_the_empty_caption(model: Any) -> None:
    shown: list[tuple[torch.Tensor, ...]] = []
    inner = model.apply_model
    model.apply_model = lambda x, t, cond: shown.append(cond.chunk(2)) or inner(x, t, cond)
    draw_samples(model, 2, SamplingOptions(steps=1, guidance=2.0, seed=0), prompts=["a man", "a woman"])
    ((without, condition),) = shown
    torch.testing.assert_close(without, model.get_learned_conditioning(["", ""]))
    torch.testing.assert_close(condition, model.get_learned_conditioning(["a man", "a woman"]))


def test_captions_matter(model: Any) -> None:
    options = SamplingOptions(steps=2, eta=0.0, seed=0)
    first = draw_samples(model, 2, options, prompts=["a man"]).images
    assert torch.equal(first, draw_samples(model, 2, options, prompts=["A  Man", "a man"]).images)
    assert not torch.allclose(first, draw_samples(model, 2, options, prompts=["a woman"]).images, atol=1e-4)


def test_prompts_are_checked(model: Any) -> None:
    with pytest.raises(UserError, match="no captions were given"):
        check_prompts(model, [])
    with pytest.raises(UserError, match="classes and captions were both given"):
        draw_samples(model, 2, SamplingOptions(), classes=[1], prompts=["a"])
    with pytest.raises(UserError, match="sampler: 'plm' is unknown"):
        SamplingOptions(sampler="plm")


def test_a_vocabulary_that_is_too_large(model: Any, files: Path, tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("\n".join([*WORDS, "dog"]))
    model.cond_stage_model.tknz_fn.vocabulary = tmp_path / "v.txt"
    with pytest.raises(UserError, match="the vocabulary has 12 pieces, but this text encoder's vocab_size is 11"):
        check_prompts(model, ["a man"])
