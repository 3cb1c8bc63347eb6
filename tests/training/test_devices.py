"""Devices in every spelling, and what a mistake in them is answered with."""

from __future__ import annotations

from typing import Any

import pytest

from ldm.errors import UserError
from ldm.training.devices import device_count, parse_gpus
from ldm.training.trainer_flags import translate_legacy_arguments


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, None),
        ("0,", [0]),
        ("0,1", [0, 1]),
        ("1, 3,", [1, 3]),
        ("[0]", [0]),
        ("[0,1]", [0, 1]),
        ([2], [2]),
        (1, [0]),
        ("2", [0, 1]),
        (True, [0]),
        (-1, [0, 1, 2]),
        (0, []),
        ("", []),
    ],
)
def test_gpus_in_every_spelling(gpus: Any, value: Any, wanted: Any) -> None:
    gpus(3)
    assert parse_gpus(value) == wanted


@pytest.mark.parametrize("value", ["one", "a,b", "[x]", -2, [None]])
def test_gpus_that_are_none(value: Any) -> None:
    with pytest.raises(UserError, match="--gpus .*expected indices such as 0,"):
        parse_gpus(value)


@pytest.mark.parametrize(
    "settings",
    [{"gpus": "0,"}, {"gpus": 1}, {"gpus": -1}, {"gpus": [0]}, {"accelerator": "gpu"}, {"accelerator": "cuda"}],
)
def test_a_gpu_where_there_is_none_names_the_way_out(gpus: Any, settings: dict[str, Any]) -> None:
    gpus(0)
    with pytest.raises(UserError, match="no GPU is visible on this machine; type --accelerator cpu"):
        translate_legacy_arguments(settings)


@pytest.mark.parametrize(
    ("settings", "accelerator", "devices"),
    [
        ({}, "gpu", 1),
        ({"gpus": "0,"}, "gpu", [0]),
        ({"gpus": "0,", "accelerator": "gpu"}, "gpu", [0]),
        ({"gpus": "1,", "accelerator": "ddp"}, "gpu", [1]),
        ({"gpus": 2, "accelerator": "ddp"}, "gpu", [0, 1]),
        ({"gpus": 0}, "cpu", 1),
        ({"gpus": "0,", "accelerator": "cpu"}, "cpu", 1),
        ({"accelerator": "cpu", "devices": [0]}, "cpu", 1),
        ({"accelerator": "cpu", "devices": 3}, "cpu", 3),
        ({"accelerator": "gpu", "devices": 2}, "gpu", 2),
        ({"distributed_backend": "dp", "gpus": 1}, "gpu", [0]),
    ],
)
def test_devices_with_two_gpus(gpus: Any, settings: dict[str, Any], accelerator: str, devices: Any) -> None:
    gpus(2)
    result = translate_legacy_arguments(settings)
    assert (result["accelerator"], result["devices"]) == (accelerator, devices)
    assert result.get("strategy") == ("ddp" if devices == [0, 1] else None)


@pytest.mark.parametrize(
    "settings", [{}, {"accelerator": "ddp"}, {"gpus": "0,", "accelerator": "cpu"}, {"gpus": ""}, {"gpus": 0}]
)
def test_devices_without_a_gpu(gpus: Any, settings: dict[str, Any]) -> None:
    gpus(0)
    result = translate_legacy_arguments(settings)
    assert result["accelerator"] in ("auto", "cpu") and result["devices"] == 1
    assert "strategy" not in result


@pytest.mark.parametrize(
    ("devices", "count"), [(1, 1), (4, 4), ([0], 1), ([0, 2], 2), ("0,1", 2), ("3", 3), ("auto", 2), (-1, 2)]
)
def test_device_count(gpus: Any, devices: Any, count: int) -> None:
    gpus(2)
    assert device_count({"accelerator": "gpu", "devices": devices}) == count


@pytest.mark.parametrize("devices", ["x", "two", "1.5", 1.5, True, {"a": 1}, ""])
def test_what_is_no_number_of_devices(devices: Any) -> None:
    with pytest.raises(UserError, match="no number of devices"):
        device_count({"accelerator": "cpu", "devices": devices})
