"""The examples in the docstrings of the privacy package run and print what they show."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = ("audit.run", "clipping", "ledger", "noise", "plan", "sampling")


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_show(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"ldm.privacy.{name}"))
    assert tried >= 3
    assert failed == 0
