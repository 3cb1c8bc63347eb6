"""`docs/from-the-originals.md` names everything that the originals give their users, and what it says is true."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from ldm.cli import ArgumentParser
from ldm.config import RETIRED, accepted_parameters, canonical_target, get_obj_from_str
from ldm.models.diffusion.dp_config import DPDM_K
from ldm.privacy.config import DPConfig
from tests.jobs.dry import verb

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/from-the-originals.md").read_text(encoding="utf-8")
NAMES: dict[str, Any] = json.loads((ROOT / "tests/fixtures/lineage/names.json").read_text(encoding="utf-8"))
GONE = "not here"


def quoted(text: str) -> set[str]:
    """Words in backticks; ``script.py --flag`` gives both."""
    return {word for span in re.findall(r"`([^`]+)`", text) for word in span.split()}


def test_every_script_flag_key_and_name_is_on_the_page() -> None:
    expected = [*NAMES["scripts"], *NAMES["names"], *NAMES["dp_config"], *NAMES["methods"], *NAMES["run"]]
    for table in (NAMES["flags"], NAMES["flags_elsewhere"], NAMES["keys"]):
        expected += [word for words in table.values() for word in words]
    missing = [word for word in expected if word not in quoted(PAGE)]
    assert missing == []
    assert [word for word in NAMES["not_here"] if word not in PAGE] == []


def test_scripts_are_there_unless_the_page_says_where_else() -> None:
    rows = [line for line in PAGE.partition("## Scripts")[2].partition("## Flags")[0].splitlines() if "|" in line]
    for script in NAMES["scripts"]:
        (row,) = [row for row in rows if script in quoted(row.split("|")[1])]
        there, here = row.split("|")[1:3]
        paths = [word for word in quoted(here) if re.search(r"[\w-]\.(py|sh|yaml|md)$|/$", word)]
        assert all((ROOT / path).exists() for path in paths), row
        if not paths and not here.strip().startswith(GONE):
            assert all((ROOT / word).exists() for word in quoted(there) if "/" in word or "." in word), row


class Flags(Exception):
    """Carries the flags of a command's parser."""


def flags_of(script: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    def stop(self: ArgumentParser, *given: Any, **named: Any) -> Any:
        raise Flags(set(self.flags))

    monkeypatch.setattr(sys, "argv", [script])
    monkeypatch.setattr(ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(ArgumentParser, "parse_known_args", stop)
    with pytest.raises(Flags) as found:
        verb(script).main()
    return found.value.args[0]


@pytest.mark.parametrize("script", NAMES["flags"])
def test_flags_are_taken(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = flags_of(script, monkeypatch)
    assert [flag for flag in NAMES["flags"][script] if flag not in flags] == []


@pytest.mark.parametrize("target", NAMES["keys"])
def test_keys_are_taken_or_retired(target: str) -> None:
    known, _, _ = accepted_parameters(get_obj_from_str(target))
    retired = RETIRED.get(canonical_target(target), {})
    assert [key for key in NAMES["keys"][target] if key not in known and key not in retired] == []
    assert set(NAMES["dp_config"]) <= {DPDM_K, *(field.name for field in fields(DPConfig))}


@pytest.mark.parametrize("name", NAMES["names"])
def test_names_import_and_build(name: str) -> None:
    assert callable(get_obj_from_str(name))
    module, _, last = name.rpartition(".")
    if last != "RankSchedulerCallback" or module != "main":
        assert hasattr(importlib.import_module(module), last)


def test_what_is_said_not_to_be_here_is_not() -> None:
    for name in NAMES["not_here"]:
        if name.startswith("ldm."):
            module, _, last = name.rpartition(".")
            found = importlib.util.find_spec(module)
            assert found is None or not hasattr(importlib.import_module(module), last), name


def test_a_page_that_forgets_something_is_noticed() -> None:
    assert "--uc_scale" not in quoted(PAGE.replace("--uc_scale", ""))
    assert not (ROOT / "scripts/inpaint.py").exists() and "scripts/inpaint.py" in NAMES["scripts"]


@pytest.mark.skipif(not (ROOT.parent / "shared/reference").is_dir(), reason="the reference lies beside the project")
def test_the_lists_are_those_of_the_reference() -> None:
    folder = ROOT.parent / "shared/reference"
    text = "\n".join((folder / name).read_text(encoding="utf-8") for name in ("dp-ldm.md", "dp-lora.md", "defects.md"))
    scripts = {word for word in re.findall(r"(?<![\w/.])(?:scripts|sampling|fid|accuracy)/\w+\.py", text)}
    listed = {word for word in NAMES["scripts"]}
    assert scripts - listed == set()
    keys = {key for words in NAMES["keys"].values() for key in words}
    section = text.partition("## 3. Configuration schema")[2].partition("### 3.2")[0]
    named = set(re.findall(r"\b[a-z]\w*_\w+\b", section)) - {"ignore_keys_callback"}
    assert {word for word in named if word not in keys and f"{word}=" in section} == set()
