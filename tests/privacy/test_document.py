"""`docs/privacy.md` names tests and modules that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")


def test_every_named_test_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)
    assert len(named) >= 15
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{name}"


def test_every_rule_names_a_test():
    rules = TEXT.split("## Six rules")[1].split("\n## ")[0]
    items = re.split(r"^\d\. ", rules, flags=re.MULTILINE)[1:]
    assert len(items) == 6
    assert all("::test_" in item for item in items)


def test_every_named_file_exists():
    for path in re.findall(r"`((?:ldm|scripts|tests)/[\w/]+\.py)`", TEXT):
        assert (ROOT / path).is_file(), path
    for command in re.findall(r"^python (\S+\.py)", TEXT, flags=re.MULTILINE):
        assert (ROOT / command).is_file(), command


def test_the_commands_use_flags_that_the_verb_has():
    from ldm.commands import budget

    known = set(budget.build_parser().flags)
    for line in re.findall(r"^python scripts/privacy_budget\.py .*$", TEXT, flags=re.MULTILINE):
        assert set(re.findall(r"--\w+", line)) <= known
