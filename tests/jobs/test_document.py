"""docs/dp-lora.md says what the code says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ldm.reports.parameter_counts import count_config
from scripts.published_epsilon import SETTINGS
from tests.jobs.dry import ROOT, bash, parse
from tests.scripts.test_published_epsilon import EXPECTED

TEXT = (ROOT / "docs" / "dp-lora.md").read_text(encoding="utf-8")
STUDY = ROOT / "dp_lora" / "reproducibility_experiments"


def cells(heading: str) -> list[list[str]]:
    """The rows of the table whose heading begins so."""
    lines = TEXT.partition(heading)[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_the_epsilons_are_the_commands() -> None:
    rows = cells("| experiment | rate, steps")
    names = ["mnist", "cifar10", "celeba32", "celeba32-k4", "celeba64", "celebahq", "celebahq-k2", "celebahq-k8"]
    assert len(rows) == len(names)
    for name, (_, constants, copies, _, proved, here) in zip(names, rows, strict=True):
        setting = next(setting for setting in SETTINGS if setting.name == name)
        rate = -(-setting.num_records // setting.batch_size)
        assert constants == f"1/{rate}, {rate * setting.epochs}, {setting.delta:.0e}".replace("e-0", "e-")
        assert int(copies) == setting.copies and here == "1 / 5 / 10"
        shown = dict(zip((1, 5, 10), map(float, proved.split(" / ")), strict=True))
        for claimed, (_, expected) in EXPECTED[name].items():
            assert shown[claimed] == pytest.approx(expected, rel=0.02)


def test_jobs_and_folders_that_it_names_are_there() -> None:
    named = {word.rstrip(".,)") for word in re.findall(r"(?:jobs|dp_lora|scripts|docs)/[\w./-]+", TEXT)}
    assert len(named) > 15
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_its_commands_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)).replace("\\\n", " ")
    commands = [shlex.split(line, comments=True)[1:] for line in blocks.splitlines() if line.startswith("python ")]
    assert len(commands) >= 6
    for command in commands:
        given = parse(command, monkeypatch)
        for name in [*given.get("base", []), given.get("yaml")]:
            assert name is None or (ROOT / name).is_file()
    experiments = re.findall(r"jobs/submit\.sh (?:--dry-run )?([\w./-]+)", TEXT)
    assert len(experiments) >= 3
    for experiment in experiments:
        assert bash(ROOT / "jobs" / "submit.sh", "--dry-run", experiment).returncode == 0, experiment


def test_the_parameter_counts_are_those_of_the_files() -> None:
    (row,) = [row for row in cells("| trained values") if row[0].startswith("MNIST")]
    path = STUDY / "finetuning" / "mnist32-class-dp-eps10.yaml"
    dead = "model.params.train_dead_parameters=true"
    published = count_config(path, ["model.params.model_lora_target=[to_q,to_k,to_v]", dead])
    found = [f"{sum((counts.trained or {}).values()):,}" for counts in (published, count_config(path, [dead]),
                                                                     count_config(path))]  # fmt: skip
    assert row[1:] == found


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (ROOT / "docs" / Path(link)).exists(), link
