"""docs/configuration.md is what the constructors say, and every key on it has a line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ldm.config import accepted_parameters, get_obj_from_str
from ldm.errors import UserError
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.reports.configuration import SECTIONS, Key, keys_of, shipped_targets
from scripts.configuration import main

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [ROOT / "configs", ROOT / "dp_lora"]


@dataclass
class Options:
    """What a class of the tests reads from its options."""

    #: A number of
    #: two lines.
    number: int = 3


class Below:
    """A base.

    Args:
        size, depth: for both.
            Continued.
        flag: one | the other.
    """

    def __init__(self, size: int, depth: Any = None, *, flag: bool = True) -> None:
        pass


class Above(Below):
    """A class that hands options on.

    Args:
        depth: see `Below`.
        name: its own.

    Raises:
        UserError: never.
    """

    OPTION_GROUPS = (Options,)

    def __init__(self, name: str | None = None, **options: Any) -> None:
        super().__init__(**options)


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Below, Above):
        monkeypatch.setattr(kind, "__module__", "ldm.tests")


def test_keys_come_from_the_constructor_its_options_and_its_bases(ours: None) -> None:
    assert keys_of(Above) == [
        Key("name", "str | None", "None", "its own."),
        Key("number", "int", "3", "A number of two lines."),
        Key("size", "int", "required", "for both. Continued."),
        Key("depth", "–", "None", "for both. Continued."),
        Key("flag", "bool", "True", "one | the other."),
    ]


def test_targets_are_found_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("model: {target: a.B, params: {parts: [{target: c.D}]}}\n")
    assert shipped_targets([tmp_path]) == {"a.B", "c.D"}


def test_a_latent_model_lists_what_it_hands_on_and_not_what_it_decides() -> None:
    names = [key.name for key in keys_of(LatentDiffusion)]
    assert {"dp_config", "timesteps", "model_lora_r", "train_attention_only"} <= set(names)
    assert "clip_denoised" not in names and "options" not in names
    assert set(names) == accepted_parameters(LatentDiffusion)[0]


def test_the_page_is_up_to_date() -> None:
    main(["--check"])


def test_every_key_has_a_line() -> None:
    targets = [target for target in shipped_targets(FOLDERS) if not target.startswith("torch.")]
    assert len(targets) > 30
    for target in (*targets, *SECTIONS.values()):
        assert [key.name for key in keys_of(get_obj_from_str(target)) if not key.line] == [], target


def test_a_page_that_is_not_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    current = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    page.write_text(current.replace("`timesteps`", "`steps`"), encoding="utf-8")
    assert page.read_text(encoding="utf-8") != current
    with pytest.raises(UserError, match="--write"):
        main(["--check", "--page", str(page)])
