"""When the learning rate leaves the range that a configuration was made for."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ldm.training.learning_rate import RateForBatch, learning_rate, rate_of_files
from tests.tiny_runs import write_yaml


def test_the_rate_of_the_file_that_sets_it(tmp_path: Path) -> None:
    model, batch = {"model": {"base_learning_rate": 1e-6}}, {"data": {"params": {"batch_size": 1000}}}
    first = write_yaml(tmp_path / "first.yaml", {**model, **batch})
    small = write_yaml(tmp_path / "small.yaml", {"base": "first.yaml", "data": {"params": {"batch_size": 100}}})
    for paths in ([first], [small], [first, small]):
        assert rate_of_files(paths) == RateForBatch(1e-6, 1000, first)
    own = write_yaml(tmp_path / "own.yaml", {"base": "small.yaml", "model": {"base_learning_rate": 2e-6}})
    assert rate_of_files([own]) == RateForBatch(2e-6, 100, own)
    assert rate_of_files([write_yaml(tmp_path / "bare.yaml", model)]) is None


@pytest.mark.parametrize(
    ("batch", "settings", "private", "said"),
    [
        (1000, {}, False, ""),
        (600, {}, False, ""),
        (100, {}, True, "learning rate 0.0001 is 0.1 times the 0.001 that a.yaml was made for (batch size 1000)"),
        (100, {"accumulate_grad_batches": 10}, False, ""),
        (1000, {"accumulate_grad_batches": 4}, False, "learning rate 0.004 is 4 times the 0.001"),
    ],
)
def test_a_rate_far_from_it_is_said(
    batch: int, settings: dict, private: bool, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    made_for = RateForBatch(1e-6, 1000, "a.yaml")
    with caplog.at_level(logging.WARNING):
        learning_rate(1e-6, batch, settings, True, private, made_for)
    assert caplog.text == "" if not said else said in caplog.text and "--scale_lr False model.base" in caplog.text
    caplog.clear()
    learning_rate(1e-6, batch, settings, False, private, made_for)
    assert caplog.text == ""
