"""What images are taken from: the declaration, a flag of the sampler, or what the user asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.errors import UserError
from ldm.reports.model_files import ModelFiles
from ldm.reports.sample_source import SampleSource, line_of_weights


def files(folder: Path, declared: str | None, *, statistics: bool = True) -> ModelFiles:
    text = "model: {}\n" + (f"sampling: {{source: {declared}}}\n" if declared else "")
    (folder / "config.yaml").write_text(text)
    return ModelFiles(folder / "config.yaml", folder / "none", draws=folder / "draws" if statistics else None)


@pytest.mark.parametrize(
    ("declared", "asked", "flag", "source", "why"),
    [
        ("draws", None, None, "draws", "declares sampling.source: draws"),
        ("draws", "model", None, "model", "you asked for it"),
        ("draws", None, "--steps", "model", "--steps applies to it alone"),
        ("model", None, None, "model", "declares no other"),
        (None, None, None, "model", "declares no other"),
        (None, "draws", None, "draws", "you asked for it"),
        ("draws", "model", "--steps", "model", "you asked for it"),
    ],
)
def test_who_decides(
    declared: str | None, asked: str | None, flag: str | None, source: str, why: str, tmp_path: Path
) -> None:
    chosen = SampleSource.choose(files(tmp_path, declared), asked, flag)
    assert chosen.source == source and why in chosen.line and "\n" not in chosen.line
    assert chosen.line.endswith(f"--source {'model' if source == 'draws' else 'draws'}")


def test_a_setting_replaces_the_declaration(tmp_path: Path) -> None:
    assert not SampleSource.choose(files(tmp_path, "draws"), settings=["sampling.source=model"]).draws


def test_a_model_without_statistics(tmp_path: Path) -> None:
    plain = files(tmp_path, None, statistics=False)
    assert SampleSource.choose(plain) == SampleSource("model", ""), "there is no choice to tell about"
    with pytest.raises(UserError, match="no draws.safetensors"):
        SampleSource.choose(plain, "draws")
    broken = files(tmp_path, "draws", statistics=False)
    with pytest.raises(UserError, match=r"draws\.safetensors is missing.*--source model"):
        SampleSource.choose(broken)
    assert not SampleSource.choose(broken, "model").draws


def test_draws_and_a_flag_of_the_sampler_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^--steps: .*no diffusion step.*--source model"):
        SampleSource.choose(files(tmp_path, None), "draws", "--steps")


def test_a_checkpoint_alone_is_told_what_it_leaves_out(tmp_path: Path) -> None:
    assert "dp-ldm sample FOLDER" in line_of_weights(files(tmp_path, "draws").config)
    assert line_of_weights(files(tmp_path, None).config) == ""


@pytest.mark.parametrize("setting", ["channels=7", "image_size=9"])
def test_a_setting_that_does_not_fit_the_network_is_refused_before_sampling(setting: str) -> None:
    files = ModelFiles.find(Path(__file__).parents[2] / "checkpoints/private/mnist-eps1")
    files.check_settings(["model.params.channels=8"])
    with pytest.raises(UserError, match=setting.replace("=", ": ")):
        files.check_settings([f"model.params.{setting}"])


def test_a_setting_of_a_section_that_a_release_lacks_is_refused() -> None:
    files = ModelFiles.find(Path(__file__).parents[2] / "checkpoints/private/mnist-eps1")
    files.check_settings(["sampling.source=model"])  # every model has a place to be sampled from
    with pytest.raises(UserError, match=r"^data.params.batch_size=9: has no effect, .*config.yaml has no such section"):
        files.check_settings(["data.params.batch_size=9"])
