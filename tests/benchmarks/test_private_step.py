"""The benchmark of private steps: its engines agree, and it refuses to compare ones that do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import private_step
from benchmarks.engines import ENGINES, Bookkeeping
from benchmarks.private_step import Case, Step, cases, check_agreement, measure_memory, median_norm
from benchmarks.workloads import SELECTIONS, SIZES, Size, build, make_rows
from ldm import cli
from ldm.errors import UserError

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
BATCH = 10

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = {"model_channels": 32, "channel_mult": [1], "attention_resolutions": [1], "num_heads": 2}
    monkeypatch.setitem(SIZES, "tiny", Size(side=4, classes=10, context=5, unet=unet))


def steps(engines: list[str], bound: float, selection: str = "attention") -> list[Step]:
    return [Step(case, CPU, bound) for case in cases("tiny", BATCH, engines, selection)]


@pytest.mark.parametrize(
    ("selection", "published", "cut_off"), [("attention", 1_578_434, 82_752), ("lora", 39_834, 8_588)]
)
def test_the_network_is_that_of_the_experiment(selection: str, published: int, cut_off: int) -> None:
    model = build(SIZES["mnist"], CPU, selection)
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert trained == published - cut_off, "without what one token cuts off"


def test_noise_multiplicities_are_chosen_and_may_be_none() -> None:
    engines = ["non-private", "bookkeeping"]
    assert [case.copies for case in cases("tiny", BATCH, engines, copies=(2, 8))] == [1, 1, 2, 8]
    assert [case.copies for case in cases("tiny", BATCH, engines, copies=())] == [1, 1]


@pytest.mark.parametrize("engine", ["non-private", "bookkeeping", "opacus-hooks"])
def test_a_batch_in_chunks_gives_the_same_sums(engine: str) -> None:
    whole, parts = (Step(Case("tiny", BATCH, engine, chunk=chunk), CPU, 1.0).sums() for chunk in (None, 4))
    assert set(whole) == set(parts)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)


def test_rows_are_record_major() -> None:
    rows = make_rows(SIZES["tiny"], 3, 2, CPU)
    assert {len(value) for value in rows.values()} == {6}
    assert torch.equal(rows["z"][0], rows["z"][1]) and not torch.equal(rows["z"][1], rows["z"][2])
    assert not torch.equal(rows["noise"][0], rows["noise"][1])


@pytest.mark.parametrize("selection", SELECTIONS)
def test_all_engines_agree_and_clip_some_records(selection: str) -> None:
    bound = median_norm("tiny", CPU, selection)
    every = steps(list(ENGINES), bound, selection)
    assert [step.case.copies for step in every] == [1] * len(ENGINES) + [4]
    check_agreement(every, bound)
    for step in every:
        before = {name: value.clone() for name, value in step.engine.trained.items()}
        assert step.timed() > 0
        assert any(not torch.equal(before[name], value) for name, value in step.engine.trained.items())


def test_engines_that_disagree_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(Bookkeeping):
        def sums(self, rows: Any) -> Any:
            return {name: 2 * value for name, value in super().sums(rows).items()}

    monkeypatch.setitem(ENGINES, "instantiate", Doubled)
    bound = median_norm("tiny", CPU)
    with pytest.raises(UserError, match="instantiate and a loop over records disagree by 1 .*no table is written"):
        check_agreement(steps(["bookkeeping", "instantiate"], bound), bound)


def test_memory_of_a_step_is_a_number() -> None:
    assert measure_memory(Case("tiny", BATCH, "bookkeeping"), CPU) >= 0


@pytest.mark.slow
def test_the_peak_of_a_fresh_process_is_its_own() -> None:
    torch.ones(150_000_000)  # 600 MB, given back at once
    code = "from benchmarks.private_step import peak_resident; print(peak_resident())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(found.stdout) < private_step.peak_resident() - 400e6


def test_the_table_is_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"bookkeeping": 0.25, "non-private": 0.125, "vmap": None}
    monkeypatch.setattr(private_step, "memory_of", lambda case, args: sizes[case.engine])
    output = tmp_path / "results" / "step.md"
    words = ["--sizes", "tiny", "--batch", "10", "--rounds", "1", "--threads", "1", "--output", str(output)]
    words += ["--selection", "lora"]
    monkeypatch.setattr(sys, "argv", ["private_step.py", *words, "--engines", *sizes])
    cli.run(private_step.main)
    text = output.read_text()
    assert text in capsys.readouterr().out
    assert "--sizes tiny --batch 10 --rounds 1" in text and "opacus" in text
    assert "| vmap | does not fit | | | |" in text
    (plain,) = [line for line in text.splitlines() if line.startswith("| non-private |")]
    assert plain.endswith("| 1.00 | 0.12 |")
    assert "| bookkeeping, 4 noise draws a record |" in text


@pytest.mark.parametrize("words", ["--rounds 0", "--batch 4", "--engines magic", "--copies 1", "--chunk 0"])
def test_mistakes_are_one_line(words: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["private_step.py", *words.split()])
    with pytest.raises(SystemExit) as stop:
        cli.run(private_step.main)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
