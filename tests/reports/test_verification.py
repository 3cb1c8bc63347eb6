"""A forger edits a release, writes its documents and checksums anew, and `verify` still names what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ldm.commands import verify
from ldm.errors import UserError
from ldm.reports.release import check_releasable, release_run
from ldm.reports.release_card import CardContent, card_page, card_text
from ldm.reports.release_facts import ReleaseFacts
from ldm.reports.release_folder import ReleaseFolder
from ldm.reports.verification import verify_release
from ldm.training import train
from tests import tiny

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release of a private run of two steps."""
    folder = tmp_path_factory.mktemp("run")
    section = tiny.ldm(
        ckpt_path=str(tiny.public_checkpoint(folder / "public.ckpt")), dp_config=tiny.dp(dataset_size=30)
    )
    run = train(tiny.options(folder, tiny.run_config(section, tiny.write_digits(folder / "digits"), 8, max_steps=2)))
    release_run(run.path, folder / "release", ReleaseFacts(title="Tiny", date="2026-01-01"))
    return folder / "release"


@pytest.fixture
def copy(release: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(release, tmp_path / "copy"))


def forge(folder: Path) -> None:
    """Documents and checksums that follow the edited files, as far as they can be computed."""
    release = ReleaseFolder(folder)
    try:
        content = CardContent.make(release.read_facts(), release.read_card())
        release.card_text.write_text(card_text(content), encoding="utf-8")
        release.card_page.write_text(card_page(content), encoding="utf-8")
    except (UserError, KeyError, TypeError, ValueError):
        pass
    release.write_sums()


def wrong(folder: Path, **kinds: bool) -> list[str]:
    """The questions of the checks that failed."""
    return [check.question for check in verify_release(folder, **kinds).checks if check.problem]


def noise_of_a_statistic(**changes: object) -> Edit:
    """One statistic more, with its event in the ledger."""

    def change(card: dict[str, Any]) -> None:
        event = {**card["ledger"]["entries"][0]["event"], "sample_rate": 1.0, "noise_multiplier": 50.0}
        card["ledger"]["entries"].append({"session": "s", "event": event, "count": 1})
        card["ledger"]["steps"] += 1
        card["statistics"] = [{"name": "means", "noise_multiplier": 50.0, "count": 1, **changes}]

    return change


def one_value_each(card: dict[str, Any]) -> None:
    """The trained parameters with one value each."""
    sizes = dict.fromkeys(card["trained"]["parameters"], 1)
    card["trained"] = {"coordinates": len(sizes), "parameters": sizes}


CARDS: dict[str, Edit] = {
    "an entry of no card": lambda card: card.update(guaranteed_epsilon=0.001),
    "an entry of no section": lambda card: card["trained"].update(note="epsilon 0.001"),
    "another coverage": lambda card: card.update(covered=["everyone, for ever"]),
    "several lines": lambda card: card.update(public_data=["fonts\n\n(0.1, 1e-9)-differentially private"]),
    "turned writing": lambda card: card.update(public_data=["fonts \u202e1.0 nolispe"]),
    "a number for a name": lambda card: card.update(public_data=[7]),
    "a mapping for a list": lambda card: card.update(not_covered={}),
    "a list for a version": lambda card: card["versions"].update(torch=["2"]),
    "a statistic without a name": noise_of_a_statistic(name=None),
    "a statistic with a word for a count": noise_of_a_statistic(count="1"),
    "a statistic with more to say": noise_of_a_statistic(guarantee="epsilon 0.001"),
    "no weights": lambda card: card["weights"].clear(),
    "nothing trained": lambda card: card.update(trained={"coordinates": 0, "parameters": {}}),
    "other sizes": one_value_each,
}


@pytest.mark.parametrize("change", CARDS.values(), ids=CARDS)
def test_an_edited_card_fails_with_and_without_its_documents(copy: Path, change: Edit) -> None:
    card = json.loads((copy / "privacy.json").read_text())
    change(card)
    (copy / "privacy.json").write_text(json.dumps(card))
    forge(copy)
    assert wrong(copy) and wrong(copy, documents=False)


@pytest.mark.parametrize("documents", [True, False])
def test_an_entry_that_stands_twice_fails(copy: Path, documents: bool) -> None:
    """Another program reads the first epsilon, this one the last."""
    text = (copy / "privacy.json").read_text()
    (copy / "privacy.json").write_text(text.replace('"epsilon": {', '"epsilon": {"pld": 0.1},\n  "epsilon": {', 1))
    forge(copy)
    assert "card and its own ledger" in wrong(copy, documents=documents)


def test_a_statistic_that_the_ledger_charges_is_sound_on_the_card(copy: Path) -> None:
    """The edits above fail for the reason that they name: without them this card agrees with itself."""
    card = json.loads((copy / "privacy.json").read_text())
    noise_of_a_statistic()(card)
    (copy / "privacy.json").write_text(json.dumps(card))
    assert "card and its own ledger" not in wrong(copy)


CONFIGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another noise": lambda config: config["model"]["params"]["dp_config"].update(noise_multiplier=99.0),
    "no privacy": lambda config: config["model"]["params"]["dp_config"].update(enabled=False),
    "a setting of no release": lambda config: config["model"]["params"]["dp_config"].update(insecure_seed=1),
    "words for settings": lambda config: config["model"]["params"].update(dp_config="private"),
    "a section of no release": lambda config: config.update(guarantee="epsilon 0.001"),
    "a target of another package": lambda config: config["model"].update(target="os.system"),
    "a file elsewhere": lambda config: config.update(base="other.yaml"),
    "a list": lambda config: {"model": [1]},
    "nothing": lambda config: {"model": None},
    "another variable": lambda config: {"model": "${oc.env:HOME}"},
}


@pytest.mark.parametrize("change", CONFIGS.values(), ids=CONFIGS)
def test_an_edited_configuration_fails(copy: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = yaml.safe_load((copy / "config.yaml").read_text())
    (copy.parent / "other.yaml").write_text("sampling: {source: model}\n")
    changed = change(config) or config
    (copy / "config.yaml").write_text(yaml.safe_dump(changed).replace("other.yaml", str(copy.parent / "other.yaml")))
    forge(copy)
    assert wrong(copy) == ["configuration and plan"]


FACTS: dict[str, dict[str, object]] = {
    "several lines": {"title": "Tiny\n\n(0.1, 1e-9)-differentially private"},
    "no day": {"date": "yesterday"},
    "names alike": {"class_names": ["one", "one"]},
    "a name that is empty": {"class_names": ["one", " "]},
    "a long text": {"title": "x" * 2001},
}


@pytest.mark.parametrize("facts", FACTS.values(), ids=FACTS)
def test_statements_that_could_look_like_the_card_fail(copy: Path, facts: dict[str, object]) -> None:
    (copy / "release.json").write_text(json.dumps({**json.loads((copy / "release.json").read_text()), **facts}))
    forge(copy)
    assert wrong(copy) == ["documents and card"]
    assert wrong(copy, documents=False) == ["a card that can be computed"]


def test_a_title_cannot_hide_the_rest_of_the_card(copy: Path) -> None:
    release = ReleaseFolder(copy)
    text = card_text(CardContent.make(ReleaseFacts(title="<!-- a", licence="MIT | <b>"), release.read_card()))
    assert text.startswith("# &lt;!-- a\n") and "| MIT \\| &lt;b> |" in text


@pytest.mark.parametrize("name", ["weights.safetensors", "CARD.md", "SHA256SUMS"])
def test_a_link_is_no_file_of_a_release(copy: Path, release: Path, name: str) -> None:
    (copy / name).unlink()
    (copy / name).symlink_to(release / name)
    assert "files and checksums" in wrong(copy)


@pytest.mark.parametrize("line", ["0" * 64 + "  config.yaml\n", "a word\n", "\n"], ids=["twice", "word", "empty"])
def test_checksums_in_another_form_fail(copy: Path, line: str) -> None:
    sums = copy / "SHA256SUMS"
    sums.write_text(line + sums.read_text())
    assert wrong(copy) == ["files and checksums"]
    assert "line 1" in verify_release(copy).lines()[0] or "second time" in verify_release(copy).lines()[0]


def test_what_cannot_be_checked_is_a_failed_check(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise AttributeError("a mistake of this program\nof two lines")

    monkeypatch.setattr("ldm.reports.verification.read_checkpoint", broken)
    with pytest.raises(SystemExit) as ended:
        verify.main([str(copy)])
    said = capsys.readouterr().out
    assert ended.value.code == 1 and "cannot be checked (AttributeError: a mistake of this program)" in said
    assert "do not rely on it" in said


def test_no_export_goes_round_a_failed_check(copy: Path) -> None:
    (copy / "card.html").write_text("words of another version")
    ReleaseFolder(copy).write_sums()
    check_releasable(copy)
    (copy / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="does not verify; type dp-ldm verify"):
        check_releasable(copy)
