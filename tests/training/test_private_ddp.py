"""Private runs over several devices: what is refused, and one real run of two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ldm.checkpoint import read_checkpoint
from ldm.errors import UserError
from ldm.training.private_ddp import PrivateDDP, private_strategy, process_count
from tests import tiny

ROOT = Path(__file__).parents[2]
STEPS = 5


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 1),
        ({"devices": 2}, 2),
        ({"accelerator": "gpu", "devices": [1, 3]}, 2),
        ({"devices": 2, "num_nodes": 3}, 6),
        ({"accelerator": "cpu", "devices": "auto"}, 1),
    ],
)
def test_process_count(settings: dict[str, Any], count: int) -> None:
    assert process_count(settings) == count


@pytest.mark.parametrize("strategy", [None, "auto", "ddp", "ddp_find_unused_parameters_true"])
def test_several_devices_are_connected_without_a_wrapper_around_the_model(strategy: str | None) -> None:
    assert type(private_strategy({"devices": 2, "strategy": strategy})) is PrivateDDP


def test_one_device_needs_no_strategy() -> None:
    assert private_strategy({"devices": 1}) == "auto"
    assert type(private_strategy({"devices": 1, "strategy": "ddp"})) is PrivateDDP


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed", "ddp_spawn", "ddp_notebook"])
@pytest.mark.parametrize("devices", [1, 2])
def test_other_strategies_are_refused(strategy: str, devices: int) -> None:
    with pytest.raises(UserError, match=f"strategy {strategy}: .* --strategy ddp"):
        private_strategy({"devices": devices, "strategy": strategy})


def test_what_is_not_trained_is_frozen_before_processes_agree_on_gradients_to_exchange() -> None:
    model = tiny.build(tiny.ldm(train_condition_only=True))
    model.setup("fit")
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained == set(model.trainable()) and len(trained) < len(list(model.parameters()))


@pytest.mark.slow
def test_two_processes_take_one_private_run(tmp_path: Path) -> None:
    digits = tiny.write_digits(tmp_path / "digits")
    model = tiny.ldm(dp_config=tiny.dp(max_batch_size=2))
    config = tiny.run_config(model, digits, 6, max_steps=STEPS)
    witness = {"target": "tests.witness.Witness", "params": {"folder": str(tmp_path)}}
    config["lightning"]["callbacks"]["witness"] = witness
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(config))
    devices = ["--devices", "2", "--accelerator", "cpu", "--strategy", "ddp"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), "--base", "two.yaml", "-t", *devices, "--allow-target", "tests"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr

    (run,) = (tmp_path / "logs").iterdir()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["weights"] == second["weights"], "the processes have drifted apart"
    assert first["run"] == second["run"] == str(run.resolve())
    assert first["strategy"] == "PrivateDDP"
    assert first["generator"] != second["generator"], "both follow the training seed"
    for seen in (first, second):
        assert [count for _, count in seen["events"]] == [STEPS]
        assert len(seen["sizes"]) == STEPS, "every process takes every step"
        assert seen["learning_rate"] == pytest.approx(6e-3), "the batch is shared: devices do not count"
        assert 0 < max(seen["sizes"]) <= tiny.RECORDS // 2, "each draws from its own half"

    (card,) = tmp_path.rglob("privacy.json")
    assert card.parent == run
    assert json.loads(card.read_text())["steps"] == {"taken": STEPS, "planned": STEPS}
    stored = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert stored["privacy"]["ledger"]["steps"] == STEPS == stored["global_step"]
    assert len(list((tmp_path / "cache" / "ldm" / "latents").iterdir())) == 1
    assert done.stderr.count("learning rate 0.006 = 6 (logical batch, shared by all devices)") == 1
