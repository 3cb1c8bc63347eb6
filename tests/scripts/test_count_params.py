"""Counting parameters: of configurations without allocating them, of checkpoints, and in the study's words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.checkpoint import save_checkpoint
from ldm.cli import run
from ldm.errors import UserError
from ldm.reports.parameter_counts import (
    ParameterCounts,
    count_checkpoint,
    count_config,
    count_parts,
    format_for_study,
    part_of,
)
from scripts import count_parameters, count_params
from tests import state_dicts, tiny
from tests.shipped import CONFIGS, path_of

MNIST = path_of("mnist32-dp-eps10")


def call(verb: Callable[[Any], None], *arguments: object) -> None:
    run(lambda: verb([str(argument) for argument in arguments]))


def test_a_configuration_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    call(count_params.main, MNIST, "--json")
    (found,) = json.loads(capsys.readouterr().out)
    assert found["parts"] == {
        "network": 4_606_467,
        "condition stage": 130,
        "first stage": 102_553_535,
        "averages": found["parts"]["averages"],
        "buffers": 12_000,
    }
    assert found["total"] == 4_606_467 + 130 + 102_553_535
    assert found["left_out"] == 82_752 and found["adapters"] == 0
    assert found["trained"] == {"total": 1_578_434 - 82_752, "network": 1_578_304 - 82_752, "condition stage": 130}
    assert found["share"] == pytest.approx((1_578_434 - 82_752) / 4_606_597)


def test_several_configurations_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    call(count_params.main, MNIST, CONFIGS / "latent-diffusion" / "emnist32-conditional.yaml")
    first, second = capsys.readouterr().out.strip().split("\n\n")
    assert "1,495,682  32.468% of network and condition stage" in first and "82,752" in first
    assert "4,606,597  100.000% of network and condition stage" in second  # pre-training trains all of both


def test_settings_change_what_is_counted() -> None:
    half = count_config(MNIST, ["model.params.ablation_blocks=4"])
    assert half.trained is not None and 130 < sum(half.trained.values()) < 1_400_000


def test_a_checkpoint_path_in_the_configuration_is_not_opened(tmp_path: Path) -> None:
    assert count_config(MNIST, [f"model.params.ckpt_path={tmp_path / 'absent.ckpt'}"]).parts["network"] == 4_606_467


def test_an_autoencoder_is_counted_by_its_parts() -> None:
    counts = count_config(CONFIGS / "autoencoder" / "autoencoder_kl_imagenet32_16x16x3.yaml")
    assert sum(count for part, count in counts.parts.items() if part != "loss") == 14_639_807
    assert counts.trained is not None and "loss" not in counts.trained and counts.share is None
    assert sum(counts.trained.values()) == 14_639_807


def written(path: Path, state: dict[str, torch.Tensor], **more: Any) -> Path:
    save_checkpoint({"state_dict": state, **more}, path)
    return path


def test_a_checkpoint_with_its_configuration_says_what_is_trained(tmp_path: Path) -> None:
    section = tiny.ldm(train_condition_only=True, dp_config={"enabled": True})
    model = tiny.build(section)
    counts = count_checkpoint(written(tmp_path / "a.ckpt", model.state_dict(), model_config=section))
    selection = model.select_trainable()
    assert counts.trained is not None and sum(counts.trained.values()) == selection.count
    assert counts.parts["network"] == sum(value.numel() for value in model.model.parameters())
    assert counts.left_out > 0
    assert count_checkpoint(written(tmp_path / "b.ckpt", model.state_dict())).trained is None


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.diffusion_model.input_blocks.1.1.attn1.to_q.weight", "network"),
        ("model.base_model.model.diffusion_model.a.to_q.lora_A.default.weight", "adapters"),
        ("model.diffusion_model.a.qkv.lora_B", "adapters"),
        ("cond_stage_model.transformer.to_q.lora_A.weight", "adapters"),
        ("model_ema.diffusion_modelato_qlora_Adefaultweight", "averages"),
        ("cond_stage_model.embedding.weight", "condition stage"),
        ("first_stage_model.loss.logvar", "autoencoder loss"),
        ("first_stage_model.quant_conv.weight", "first stage"),
        ("betas", "buffers"),
        ("encoder.conv_in.weight", "encoder"),
    ],
)
def test_parts(name: str, part: str) -> None:
    assert part_of(name) == part


def test_the_studys_lines_of_the_published_mnist_model() -> None:
    rows = state_dicts.listing("dplora_mnist32-class-dp-eps10")
    parts = count_parts({key: torch.empty(shape, device="meta") for key, (_, shape) in rows.items()})
    assert parts == {
        "network": 4_606_467,
        "adapters": 56_880,
        "averages": 56_882,
        "condition stage": 130,
        "first stage": 102_553_535,
        "buffers": 12_000,
    }
    lines = format_for_study(ParameterCounts("", parts)).splitlines()
    assert lines[0] == lines[-1] and set(lines[0]) == {"-"}
    assert lines[1:4] == [
        "Total parameters: 107,285,894",
        "Trainable (LoRA): 56,880",
        "Percentage Trainable: 0.0530%",
    ]


def test_the_studys_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {"model.diffusion_model.a.lora_A": torch.zeros(3), "model.diffusion_model.a.weight": torch.zeros(7)}
    call(count_parameters.main, "--ckpt", written(tmp_path / "a.ckpt", state))
    text = capsys.readouterr().out
    assert "Total parameters: 10\nTrainable (LoRA): 3\nPercentage Trainable: 30.0000%" in text
    assert "adapters" in text


def test_a_model_with_adapters_trains_only_them_and_the_embedding() -> None:
    adapters = ["use_model_lora=true", "model_lora_r=8", "model_lora_target=[to_q,to_k,to_v]"]
    counts = count_config(MNIST, [f"model.params.{setting}" for setting in adapters])
    assert counts.trained is not None
    assert counts.parts["adapters"] == 56_880 and counts.parts["network"] == 4_606_467
    assert counts.trained["adapters"] + counts.left_out == 56_880
    assert counts.trained["condition stage"] == 130 and "network" not in counts.trained


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to count"),
        (["absent.yaml"], "does not exist"),
        (["--ckpt", "absent.ckpt"], "does not exist"),
        (["--ckpt", "a.ckpt", "--set", "a=1"], "settings change configurations"),
        ([CONFIGS / "quickstart" / "no-privacy.yaml"], "target"),
        ([MNIST, "--set", "model.params.ablation_block=4"], "did you mean 'ablation_blocks'"),
    ],
)
def test_nonsense_ends_with_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[object], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        call(count_params.main, *arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_a_file_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: {}\n")
    with pytest.raises(UserError, match="no section 'model'"):
        count_config(tmp_path / "a.yaml")
