"""`Job`: one SLURM script and its text by a template; the files of all jobs, written to a folder or compared to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

CONFIGS = "dp_lora/reproducibility_experiments"
HANDWRITTEN = ("common.sh", "job_files.py", "make_jobs.py", "submit.sh")
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Job:
    """One script: its path below ``jobs/``, its purpose, hours, jobs it waits for, and aliases.

    template: the file in ``templates/`` with its commands; values: the values for the template.
    """

    path: str
    about: str
    hours: int
    template: str
    values: Mapping[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return Path(self.path).stem

    def text(self) -> str:
        """The script's text; the script can be submitted from any folder of the repository or run with bash."""
        values = {"configs": CONFIGS, "place": "", **self.values}
        return _templates().get_template(f"{self.template}.sh.jinja").render(job=self, **values)


@cache
def _templates() -> Environment:
    """The template environment, without escaping for shell code, and strict about undefined names."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(jobs: Iterable[Job]) -> dict[str, str | Path]:
    """The files of ``jobs``: path below ``jobs/`` to the text of a script, or to the target `Path` of a link."""
    found: dict[str, str | Path] = {}
    for job in jobs:
        for path in (job.path, *job.aliases):
            if path in found:
                raise ValueError(f"two jobs are called {path}")
        found[job.path] = job.text()
        for alias in job.aliases:  # an alias is in the same folder
            found[alias] = Path(Path(job.path).name)
    return found


def differences(folder: Path, wanted: Mapping[str, str | Path]) -> list[str]:
    """One line for every file below ``folder`` that is missing, superfluous or different from the table."""
    found = (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    ours = {str(path.relative_to(folder)) for path in found if "__pycache__" not in path.parts}
    present = {path for path in ours if Path(path).parts[0] != TEMPLATES.name}
    lines = [f"{path}: is not in the table" for path in sorted(present - set(wanted) - set(HANDWRITTEN))]
    for path, content in wanted.items():
        if path not in present:
            lines.append(f"{path}: is missing")
        elif _read(folder / path) != content:
            lines.append(f"{path}: differs from the table")
    return lines


def write(folder: Path, wanted: Mapping[str, str | Path]) -> int:
    """Update ``folder`` to the ``wanted`` files and the handwritten ones; returns the number of changed files."""
    changed = 0
    for line in differences(folder, wanted):
        path = folder / line.partition(":")[0]
        path.unlink(missing_ok=True)
        changed += 1
        content = wanted.get(str(path.relative_to(folder)))
        if content is None:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            path.symlink_to(content)
        else:
            path.write_text(content)
            path.chmod(0o755)
    return changed


def _read(path: Path) -> str | Path:
    return path.readlink() if path.is_symlink() else path.read_text()
