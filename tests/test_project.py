"""The project's own files agree with each other: paths, versions, extras, walls."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
INSTALLED_EXTRAS = ("quickstart", "dev", "text")


def requirements(*extras: str) -> list[Requirement]:
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += EXTRAS[extra]
    return [Requirement(line) for line in lines]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def shipped_text() -> list[Path]:
    """Text files that a user runs or reads."""
    folders = ("ldm", "callbacks", "configs", "scripts", "fid", "sampling", "jobs", "dp_lora", "docs", ".ci")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    found += [path for path in ROOT.iterdir() if path.is_file() and path.suffix in (".py", ".md", ".yaml", ".toml")]
    found += [ROOT / "Makefile", ROOT / "constraints.txt"]
    kinds = (".py", ".yaml", ".yml", ".md", ".sh", ".job", ".txt", ".toml", "")
    return [path for path in found if path.suffix in kinds and "__pycache__" not in path.parts]


@pytest.mark.parametrize("name", ["Makefile", ".ci/run", "environment.yaml"])
def test_paths_that_the_build_names_exist(name):
    text = (ROOT / name).read_text()
    in_folder = r"(?:scripts|configs|fid|sampling|docs|tests)/[\w./-]+"
    named = re.findall(rf"(?<![\w./$)-])(?:{in_folder}|\w+\.(?:txt|toml|py)\b)", text)
    assert named or name != "Makefile"
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_configurations_that_shipped_text_names_exist():
    named = {
        (path.name, name)
        for path in shipped_text()
        for name in re.findall(r"(?<![\w/.$-])configs/[\w./-]+\.yaml", path.read_text())
    }
    assert ("main.py", "configs/quickstart/finetune-dp-eps10.yaml") in named
    assert [pair for pair in sorted(named) if not (ROOT / pair[1]).exists()] == []


def test_every_requirement_is_pinned_within_its_range():
    pinned = pins()
    for requirement in requirements(*INSTALLED_EXTRAS):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is missing in constraints.txt"
        assert version in requirement.specifier, f"{requirement.name}=={version} is outside {requirement.specifier}"


def test_the_pins_are_plain_versions():
    text = (ROOT / "constraints.txt").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.+!]+", line)] == []
    assert pins()["torch"] == "2.14.1" and pins()["torchvision"] == "0.29.1", "built for each other"


def test_make_and_conda_install_the_same():
    extras = f"'.[{','.join(INSTALLED_EXTRAS)}]'"
    assert f"--constraint constraints.txt --editable {extras}" in (ROOT / "Makefile").read_text()
    environment = yaml.safe_load((ROOT / "environment.yaml").read_text())
    assert environment["name"] == "ldm"
    (from_pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert from_pip == ["-c constraints.txt", f"-e {extras[1:-1]}"]


def test_no_file_names_a_place_of_one_machine():
    homes = r"(?<![\w.:/~}])/(?:home|root|tmp|opt|work|mnt|scratch|Users|gpfs|projects)/\w|\b[A-Z]:\\\\?\w"
    found = {
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in shipped_text()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(homes, line)
    }
    assert found == set()


def test_the_privacy_room_imports_arithmetic_and_accountants_only():
    allowed = (
        "torch",
        "numpy",
        "scipy",
        "dp_accounting",
        "opacus.accountants",
        "ldm.errors",
        "ldm.files",
        "ldm.numbers",
        "ldm.privacy",
    )
    strays = []
    for path in (ROOT / "ldm" / "privacy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""] if node.level == 0 else ["relative"]
            for name in names:
                known = name.partition(".")[0] in sys.stdlib_module_names
                if not known and not any(name == room or name.startswith(room + ".") for room in allowed):
                    strays.append(f"{path.relative_to(ROOT)} imports {name}")
    assert strays == []


def test_every_room_is_a_package():
    folders = {path.parent for room in ("ldm", "callbacks") for path in (ROOT / room).rglob("*.py")}
    assert [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_library_is_importable_from_any_folder(tmp_path):
    """Needs the editable install of `make venv`."""
    code = "import ldm, callbacks, pathlib; print(pathlib.Path(ldm.__file__).parent)"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()) == ROOT / "ldm"


def test_links_between_documents_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        assert [link for link in links if not (page.parent / link).exists()] == [], page.name
