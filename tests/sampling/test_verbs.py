"""The sampling commands as the documents type them, on tiny models whose EMA weights differ."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from fid import compute_samples_stats
from ldm.commands.table import dispatch
from ldm.config import load_config
from ldm.evaluation.metrics.statistics import FeatureStatistics
from ldm.inference import files as inference
from ldm.samples import SampleSet
from sampling import cond_sampling_test, conditional_sampling, unconditional_sampling
from scripts import export_checkpoint
from tests import tiny
from tests.tiny_runs import ROOT, Commands, commands, small_checkpoint, small_ldm, write_yaml

__all__ = ["commands"]

QUICK = ("--device", "cpu")


def guided_section() -> dict[str, Any]:
    """A model that was trained with a null class, number 10."""
    guided = small_ldm()
    guided["params"]["cond_stage_config"]["params"].update(n_classes=11, ucg_rate=0.1)
    return guided


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """YAML files and checkpoints of a class-conditional, a guided and an unconditional model.

    Averaged weights differ from trained ones. The YAML files are those of fine-tuning: they name checkpoints that are
    not there, and keys to ignore; NAME_clean.yaml does not.
    """
    folder = tmp_path_factory.mktemp("models")
    for name, node in (("class", small_ldm()), ("guided", guided_section()), ("plain", small_ldm("attention"))):
        small_checkpoint(folder / f"{name}.ckpt", node)
        write_yaml(folder / f"{name}_clean.yaml", {"model": node})
        node["params"].update(ckpt_path="none/none.ckpt", ignore_keys=["cond_stage_model", "model."])
        node["params"]["first_stage_config"]["params"]["ckpt_path"] = "???"
        write_yaml(folder / f"{name}.yaml", tiny.run_config(node, folder))
    return folder


@pytest.fixture
def conditional(commands: Commands, files: Path) -> Any:
    """sampling/conditional_sampling.py on the class-conditional model; returns what it wrote."""

    def sample(*words: object, name: str = "class", output: str = "a.pt") -> SampleSet:
        given = ("--yaml", files / f"{name}.yaml", "--ckpt", files / f"{name}.ckpt", "--output", output)
        code = commands.type(conditional_sampling.main, *given, "--ddim_steps", 2, *QUICK, *words)
        assert code == 0, commands.err
        return SampleSet.load(output)

    return sample


def raw(path: str | Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def test_readme_command_of_class_conditional_models(commands: Commands, files: Path) -> None:
    words = ["-y", files / "class.yaml", "-ckpt", files / "class.ckpt", "-c", *range(10)]
    assert commands.type(cond_sampling_test.main, *words, "-step", 2, "-bs", 7, *QUICK) == 0
    made = raw("conditional_mnist_samples.pt")
    assert set(made) == {"image", "class_label", "meta"}
    assert made["image"].shape == (20, 1, 8, 8) and made["image"].dtype == torch.float32
    assert made["image"].device.type == "cpu" and made["image"].abs().max() <= 1
    assert made["class_label"].tolist() == [label for label in range(10) for _ in range(2)]
    assert made["class_label"].dtype == torch.int64
    assert Path("test_class_cond.jpg").stat().st_size > 0


def test_counts_are_exact_when_classes_do_not_divide_them(commands: Commands, files: Path) -> None:
    words = ["-y", files / "class.yaml", "--ckpt_path", files / "class.ckpt", "-c", 0, 1, 2, "-n", 20, "-step", 2]
    for flag in ("-bs", "--batch_size"):
        assert commands.type(cond_sampling_test.main, *words, flag, 6, "-o", "x.pt", "--picture", "x.png", *QUICK) == 0
        made = raw("x.pt")
        assert len(made["image"]) == 20
        assert made["class_label"].tolist() == [0] * 7 + [1] * 7 + [2] * 6


def test_declared_names_go_with_the_labels(commands: Commands, files: Path, tmp_path: Path) -> None:
    config = load_config([files / "class.yaml"])
    names = [f"digit {number}" for number in range(10)]
    OmegaConf.update(config, "data.params.train.params.class_names", names, force_add=True)
    OmegaConf.save(config, tmp_path / "named.yaml")
    words = ["-y", tmp_path / "named.yaml", "-ckpt", files / "class.ckpt", "-step", 2, *QUICK]
    assert commands.type(cond_sampling_test.main, *words, "-n", 10) == 0
    assert raw("conditional_mnist_samples.pt")["meta"]["class_names"] == names
    words = ["--yaml", tmp_path / "named.yaml", "--ckpt", files / "class.ckpt", "--ddim_steps", 2, *QUICK]
    assert commands.type(conditional_sampling.main, *words, "-c", 3, "-n", 2, "--output", "b.pt") == 0
    assert raw("b.pt")["meta"]["class_names"] == names
    dispatch(["export", "b.pt", "out"])
    assert {path.name: len(list(path.iterdir())) for path in Path("out").iterdir()} == {
        name: 2 * (name == "digit 3")
        for name in names  # a class without images keeps its number
    }


def test_classes_as_numbers_and_as_a_list(conditional: Any) -> None:
    first = conditional("--classes", "[0, 1]", "--num_samples", 5)
    second = conditional("--classes", 0, 1, "-n", 5)
    assert first.labels.tolist() == second.labels.tolist() == [0, 0, 0, 1, 1]
    assert torch.equal(first.images, second.images)
    assert conditional("-n", 2).labels.tolist() == [0, 0], "class 0 is the default of the original"
    assert first.images.shape == (5, 1, 8, 8) and first.images.abs().max() <= 1


@pytest.mark.parametrize("word", ["1.5", "True and 1", "[0, 1.0]", "'1'", "{1}"])
def test_what_is_no_class_is_no_class(word: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no class or list of classes"):
        conditional_sampling.class_list(word)


def test_labels_condition_the_images(conditional: Any) -> None:
    one, two = conditional("-c", 1, "-n", 3), conditional("-c", 2, "-n", 3)
    assert not torch.allclose(one.images, two.images)


def test_seeds(conditional: Any) -> None:
    default, zero, one = (conditional("-n", 3, *words) for words in ([], ["--seed", 0], ["--seed", 1]))
    assert torch.equal(default.images, zero.images) and not torch.allclose(zero.images, one.images)


def test_decoding_in_parts_changes_nothing(conditional: Any) -> None:
    whole, parts = conditional("-n", 5), conditional("-n", 5, "--decoder_batch_size", 2)
    assert torch.allclose(whole.images, parts.images, atol=1e-6)


def test_a_stopped_command_goes_on_when_it_is_typed_again(
    commands: Commands, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["-y", files / "class.yaml", "-ckpt", files / "class.ckpt", "-c", 0, 1, "-n", 5, "-step", 2, "-bs", 2]
    words += QUICK
    assert commands.type(cond_sampling_test.main, *words, "-o", "whole.pt") == 0
    with monkeypatch.context() as patch:
        draw = inference.sample_batches

        def interrupted(*args: Any, **kwargs: Any) -> Any:
            yield next(draw(*args, **kwargs))
            raise KeyboardInterrupt

        patch.setattr(inference, "sample_batches", interrupted)
        assert commands.type(cond_sampling_test.main, *words, "-o", "a.pt") == 130
    assert not Path("a.pt").exists() and Path("a.pt.unfinished").is_dir()
    wrong = commands.refused(cond_sampling_test.main, *words, "-o", "a.pt", "--seed", 1)
    assert "a.pt.unfinished: 2 of 5 images of a run with other settings (seed: 0 there, 1 here); remove it" in wrong
    assert commands.type(cond_sampling_test.main, *words, "-o", "a.pt") == 0
    assert torch.equal(raw("a.pt")["image"], raw("whole.pt")["image"]) and not Path("a.pt.unfinished").exists()


def test_averaged_weights_are_the_default(conditional: Any) -> None:
    default, on, off = (conditional("-n", 3, *words) for words in ([], ["--ema"], ["--no-ema"]))
    assert torch.equal(default.images, on.images) and not torch.allclose(on.images, off.images)
    assert default.meta["ema"] is True and off.meta["ema"] is False


def test_averaged_weights_are_the_default_of_the_other_verbs(commands: Commands, files: Path) -> None:
    for verb, name, own in (
        (cond_sampling_test, "class", ["-step", 2, "-c", 0]),
        (unconditional_sampling, "plain", ["--ddim_steps", 2]),
    ):
        made = []
        for words in ([], ["--ema"], ["--no-ema"]):
            given = ["-y", files / f"{name}.yaml", "-ckpt", files / f"{name}.ckpt", *own, "-o", "e.pt", *QUICK]
            assert commands.type(verb.main, *given, "-n", 3, "--seed", 0, *words) == 0
            made.append(raw("e.pt")["image"])
        assert torch.equal(made[0], made[1]) and not torch.allclose(made[1], made[2])


def test_checkpoints_and_ignored_keys_of_the_yaml_do_not_matter(conditional: Any) -> None:
    fine_tuning = conditional("-n", 3)  # names checkpoints that do not exist, and ignores every weight of the network
    clean = conditional("-n", 3, "--yaml", Path(fine_tuning.meta["config"]).with_name("class_clean.yaml"))
    assert torch.equal(fine_tuning.images, clean.images)


def test_what_was_done_is_written_beside_the_samples(conditional: Any, files: Path) -> None:
    meta = conditional("-n", 3, "--seed", 5, "--eta", 0.5).meta
    assert meta["seed"] == 5 and meta["eta"] == 0.5 and meta["steps"] == 2 and meta["sampler"] == "ddim"
    assert meta["checkpoint"] == str(files / "class.ckpt") and len(meta["checkpoint_sha256"]) == 64


def test_a_grid(commands: Commands, files: Path) -> None:
    words = ["--yaml", files / "class.yaml", "--ckpt", files / "class.ckpt", "--ddim_steps", 2, *QUICK]
    assert commands.type(conditional_sampling.main, *words, "-n", 4, "-c", 0, 1, "-o", "grid.png") == 0
    assert Image.open("grid.png").size == (2 * 10 + 2, 2 * 10 + 2), "a line a class"


def test_guidance(conditional: Any) -> None:
    plain = conditional("-n", 3, "-c", 1)
    guided = conditional("-n", 3, "-c", 1, "--uc", 3, "--uc_scale", 4)
    assert not torch.allclose(plain.images, guided.images)
    assert torch.equal(plain.images, conditional("-n", 3, "-c", 1, "--uc", 3).images), "a scale of 1 guides nothing"
    null = conditional("-n", 3, "-c", 1, "--uc_scale", 4, name="guided")
    named = conditional("-n", 3, "-c", 1, "--uc_scale", 4, "--uc", 10, name="guided")
    assert torch.equal(null.images, named.images), "the null class needs no naming"


def test_guidance_by_the_published_command(commands: Commands, files: Path) -> None:
    words = ["-y", files / "class.yaml", "--ckpt", files / "class.ckpt", "-c", 1, "-n", 3, "-step", 2, *QUICK]
    made = []
    for scale in (1, 4):
        assert commands.type(cond_sampling_test.main, *words, "-scale", scale, "--uc", 3, "-eta", 0) == 0
        made.append(raw("conditional_mnist_samples.pt")["image"])
    assert not torch.allclose(made[0], made[1])


def test_unconditional_models_and_the_published_spelling(commands: Commands, files: Path) -> None:
    words = ["--yaml", files / "plain.yaml", "--ckpt", files / "plain.ckpt", "--ddim_steps", 2, "--seed", 3, *QUICK]
    words += ["--num_samples", 5, "--batch_size", 3]
    made = []
    for verb in (unconditional_sampling.main, ROOT / "sampling" / "unonditional_sampling.py"):
        assert commands.type(verb, *words) == 0, commands.err
        made.append(raw("plain_samples.pt"))
        Path("plain_samples.pt").unlink()
    assert set(made[0]) == {"image", "meta"} and made[0]["image"].shape == (5, 1, 8, 8)
    assert torch.equal(made[0]["image"], made[1]["image"])
    assert commands.type(unconditional_sampling.main, *words, "-o", "plain.png") == 0
    assert Path("plain.png").stat().st_size > 0 and not Path("plain_samples.pt").exists()


def test_exported_weights_give_the_same_images(conditional: Any, commands: Commands, files: Path) -> None:
    for ema in ("--ema", "--no-ema"):
        out = f"small{ema}.safetensors"
        assert commands.type(export_checkpoint.main, "--ckpt", files / "class.ckpt", "-o", out, ema) == 0
        assert "values" in commands.out
        from_checkpoint = conditional("-n", 3, ema)
        assert torch.equal(conditional("-n", 3, "--ckpt", out).images, from_checkpoint.images)


def test_samples_go_on_to_the_metrics(conditional: Any, capsys: pytest.CaptureFixture[str]) -> None:
    conditional("-n", 6, "-c", 0, 1)
    compute_samples_stats.main(["--samples", "a.pt", "--output", "a.npz", "--extractor", "pixels", "--device", "cpu"])
    assert FeatureStatistics.load("a.npz").count == 6


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--num_samples 0", "0 samples asked for; give the number of images, 1 or more"),
        ("--batch_size 0", "batch_size: 0 is below 1"),
        ("--decoder_batch_size 0", "decoder_batch_size: 0 is below 1"),
        ("--eta 1.5", "eta: 1.5 is outside [0, 1]"),
        ("--eta -0.1", "eta: -0.1 is outside [0, 1]"),
        ("--ddim_steps 0", "steps: 0 is below 1"),
        ("--ddim_steps 1001", "1001 DDIM steps asked of a diffusion with 1000 steps; choose a number from 1 to 1000"),
        ("--classes 3 10", "class 10 is out of range: the model has 10 classes, 0 to 9"),
        ("--classes -1", "class -1 is out of range"),
        ("--classes []", "this model is class-conditional; name classes from 0 to 9"),
        ("--classes zero", "argument --classes/-c: 'zero' is no class or list of classes; type 0 1 2"),
        ("--uc_scale 2", "guidance needs a class that stands for no condition; name it with --uc"),
        ("--uc_scale 2 --uc 10", "class 10 is out of range"),
        ("--yaml none.yaml", "config file 'none.yaml' does not exist"),
        ("--ckpt none.ckpt", "checkpoint 'none.ckpt' does not exist"),
        ("--output samples.txt", "samples.txt: cannot tell what to write; end the name in .pt or .png"),
        ("--output /proc/none/a.pt", "/proc/none/a.pt: folder /proc/none: cannot be written to"),
        ("--ckpt {files}/class.yaml", "class.yaml' is not a checkpoint by its name"),
        ("--ckpt {files}/guided.ckpt", "guided.ckpt does not fit the model of the configuration; give the YAML"),
        ("--yaml {files}/plain.yaml", "class.ckpt: "),
        ("--device tpu9", "'tpu9' is no device; type --device cpu"),
        ("--ddim_stepp 2", "unknown flag '--ddim_stepp'; did you mean '--ddim_step"),
        ("--sampler dpmm", "argument --sampler: invalid choice: 'dpmm'"),
        ("--plms --dpm_solver", "not allowed with argument --plms"),
        ("--lineage --steps 3", "--lineage sets sampler, steps and eta itself"),
        ("--guide_with {files}/class.ckpt", "--guide_with needs --guidance above 1"),
        ("--guide_with none.ckpt --guidance 2", "checkpoint 'none.ckpt' does not exist"),
        ("--shard 3", "--shard 3: is no part of a job; type 1/4"),
        ("--shard 3/2", "part 3 of 2 does not exist"),
        ("--shard 1/2 --output a.png", "a grid is drawn by one process"),
    ],
)
def test_mistakes(commands: Commands, files: Path, words: str, line: str) -> None:
    given = ["--yaml", files / "class.yaml", "--ckpt", files / "class.ckpt", "--output", "new/a.pt", "--ddim_steps", 2]
    typed = words.format(files=files).split()
    assert line in commands.refused(conditional_sampling.main, *given, *QUICK, *typed)


def test_mistakes_of_the_other_verbs(commands: Commands, files: Path) -> None:
    plain = ["--yaml", files / "plain.yaml", "--ckpt", files / "plain.ckpt", *QUICK]
    unconditional = "this model is unconditional and has no --classes; use sampling/unconditional_sampling.py"
    assert unconditional in commands.refused(conditional_sampling.main, *plain, "-o", "a.pt", "--classes", 0)
    assert unconditional in commands.refused(cond_sampling_test.main, *plain, "-c", 0)
    conditional = ["--yaml", files / "class.yaml", "--ckpt", files / "class.ckpt", *QUICK]
    assert "this model is class-conditional" in commands.refused(unconditional_sampling.main, *conditional)
    assert "--classes" in commands.refused(unconditional_sampling.main, *plain, "--classes", 0)
    published = ["-y", files / "class.yaml", "-ckpt", files / "class.ckpt", *QUICK]
    for flag, name in (("-o", "a.png"), ("--picture", "a.pt"), ("--picture", "/proc/a.png")):
        assert name in commands.refused(cond_sampling_test.main, *published, flag, name)


def test_files_that_are_no_checkpoint(commands: Commands, files: Path, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("broken")
    (folder / "text.ckpt").write_text("no checkpoint")
    (folder / "empty.ckpt").touch()
    (folder / "cut.ckpt").write_bytes((files / "class.ckpt").read_bytes()[:1000])
    torch.save({"image": torch.zeros(1)[:, None], "meta": {}}, folder / "samples.pt")
    for path in sorted(folder.iterdir()):
        words = ["--yaml", files / "class.yaml", "--ckpt", path, "--output", "a.pt", *QUICK]
        assert str(path) in commands.refused(conditional_sampling.main, *words)


def test_other_configurations_are_refused(commands: Commands, files: Path, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("configs")
    heads, schedule = small_ldm(), small_ldm(linear_end=0.02)
    heads["params"]["unet_config"]["params"]["num_heads"] = 4
    cases = {
        "describes ldm.models.autoencoder.AutoencoderKL; sampling needs": {"model": tiny.AUTOENCODER},
        "has no section 'model'": {"data": {}},
        "was trained with unet num_heads=2, the config says 4": {"model": heads},
        "was trained with another noise schedule": {"model": schedule},
    }
    for line, content in cases.items():
        words = ["--yaml", write_yaml(folder / "a.yaml", content), "--ckpt", files / "class.ckpt", "-o", "a.pt", *QUICK]
        assert line in commands.refused(conditional_sampling.main, *words)
