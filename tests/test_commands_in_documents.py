"""Every command that a document shows exists, and its own parser takes the arguments that are shown.

`docs/dp-lora.md` has further tests in `tests/jobs/test_document.py`.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ldm.commands.table import COMMANDS
from tests.jobs.dry import parse

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("docs", "checkpoints")
PAGES = [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in sorted((ROOT / folder).glob("*.md")))]

#: Programs that are not this project's; their arguments are not checked.
FOREIGN = {"cd", "conda", "git", "mkdir", "pip", "unzip", "wget", "tensorboard"}
INTERPRETERS = ("python", ".venv/bin/python")


def commands(page: Path) -> list[list[str]]:
    """The words of each command in the shell blocks of a page, without variables set before it."""
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = []
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        for part in line.split(" && "):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words = words[1:]
            if words:
                found.append(words)
    return found


def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise AssertionError, or exit as the command would, for one that does not work as shown."""
    program, *arguments = words
    if program in INTERPRETERS and arguments[0] != "-c":
        assert (ROOT / arguments[0]).is_file(), words
        given = parse(arguments, monkeypatch)
        base = given["base"] if arguments[0] == "main.py" else []
        for name in [*base, *re.findall(r"(?:configs|dp_lora)/\S+\.yaml", " ".join(arguments))]:
            assert (ROOT / name).is_file(), words
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert set(arguments) <= set(targets), words
    elif program == "dp-ldm":
        assert arguments[0] in COMMANDS, words
    elif program in ("bash", "sbatch"):
        assert (ROOT / arguments[0]).is_file(), words
    elif program not in (*FOREIGN, *INTERPRETERS):
        assert (ROOT / program).is_file(), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_work_as_shown(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in commands(page):
        try:
            check(words, monkeypatch)
        except SystemExit as end:
            pytest.fail(f"{page.name}: {shlex.join(words)} exits with {end.code}")


#: The least number of commands that a page shows: together those that README showed before its parts moved.
SHOWN = {
    "README.md": 6,
    "docs/training.md": 5,
    "docs/sampling.md": 6,
    "docs/evaluation.md": 10,
    "docs/commands.md": 3,
    "docs/your-data.md": 20,
}


@pytest.mark.parametrize("page", SHOWN)
def test_pages_show_commands(page: str) -> None:
    assert len(commands(ROOT / page)) >= SHOWN[page]


def unlisted(text: str) -> list[str]:
    """Every script and every command of `dp-ldm` that a text does not name."""
    scripts = [path for folder in ("scripts", "sampling", "fid") for path in (ROOT / folder).glob("*.*")]
    names = [path.name for path in scripts if path.suffix in (".py", ".sh") and path.name not in ALIASES]
    assert len(names) > 25
    return [name for name in [*names, *(f"`dp-ldm {name}" for name in COMMANDS)] if name not in text]


def test_the_page_of_commands_lists_every_command() -> None:
    text = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    assert unlisted(text) == []
    assert unlisted(text.replace("compute_fid.py", "").replace("`dp-ldm audit", "")) == [
        "compute_fid.py",
        "`dp-ldm audit",
    ]


def test_readme_is_a_front_door() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    pages = {page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").glob("*.md")}
    assert pages - set(re.findall(r"\]\(([\w/.-]+)\)", text)) == set()
    for heading in ("Pretrained autoencoders", "Pretrained LDMs", "Fine-tuned LDMs (private)"):  # of the original
        assert f"\n### {heading}\n" in text


def anchors(page: Path) -> set[str]:
    """The places of a page that a link can name, as GitHub spells them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def broken_links(page: Path, text: str) -> list[str]:
    """The links and images of a page to files, or to places in them, that do not exist."""
    broken = []
    for link in re.findall(r"(?:\]\(|src=\")([^)\s\"]+)[)\"]", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        path, _, place = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = page.parent / path if path else page
        if not target.exists() or (place and place not in anchors(target)):
            broken.append(link)
    return broken


LINKING = [*PAGES, *sorted((ROOT / "results").glob("*.md")), ROOT / "benchmarks/README.md"]


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_noticed() -> None:
    text = "[a](docs/data.md) [b](docs/none.md) [c](docs/data.md#caches) [d](docs/data.md#none) [e](https://x.y/z)"
    text += '<img src="results/none.png" width="9">'
    assert broken_links(ROOT / "README.md", text) == ["docs/none.md", "docs/data.md#none", "results/none.png"]


#: Second names of commands, kept for whoever types them.
ALIASES = {"unonditional_sampling.py", "txt2img.py", "__init__.py"}


@pytest.mark.parametrize(
    "line",
    [
        "python scripts/no_such.py",
        "make no-such-target",
        "dp-ldm no-such",
        "python scripts/compare.py --no-such a",
        "ls",
    ],
)
def test_a_command_that_does_not_work_is_noticed(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, SystemExit)):
        check(shlex.split(line), monkeypatch)
