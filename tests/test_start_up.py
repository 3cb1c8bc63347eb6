"""Commands answer --help, a typing error and a mistake in their arguments before torch is imported.

Sampling imports torch and nothing that takes as long: no trainer, no accountant.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "pytorch_lightning", "scipy", "matplotlib", "PIL")

#: What training, accounting and evaluating need and sampling does not; each takes a good part of torch's own time.
NOT_FOR_SAMPLING = (
    "pytorch_lightning",
    "lightning_fabric",
    "torchmetrics",
    "torchvision",
    "torch._dynamo",
    "dp_accounting",
    "scipy",
    "pandas",
    "matplotlib",
    "jinja2",
    "transformers",
    "tensorboard",
)

#: Types every command line of a list in one process; prints the exit code and the heavy modules after each.
TYPE = """
import contextlib, io, json, os, runpy, sys
found = []
for words in json.loads(sys.argv[1]):
    sys.argv = words
    code = 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            run = runpy.run_module if words[0] == "ldm" else runpy.run_path
            run(words[0], run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
    found.append([code, [name for name in {heavy} if name in sys.modules]])
print(json.dumps(found))
"""


def typed(lines: list[list[str]], names: tuple[str, ...] = HEAVY) -> list[tuple[int, list[str]]]:
    """Exit code of each command line, and which of the modules ``names`` are there after it, in one process."""
    code = TYPE.replace("{heavy}", repr(names))
    given = [sys.executable, "-c", code, json.dumps(lines)]
    done = subprocess.run(given, capture_output=True, text=True, check=True, cwd=ROOT)
    return [(code, heavy) for code, heavy in json.loads(done.stdout)]


def commands() -> list[list[str]]:
    """Every command of the project: the scripts, and those of dp-ldm."""
    from ldm.commands.table import COMMANDS

    folders = ("sampling", "scripts", "fid", "accuracy")
    scripts = [path for folder in folders for path in sorted((ROOT / folder).glob("*.py"))]
    scripts = [path for path in [ROOT / "main.py", ROOT / "txt2img.py", *scripts] if "__main__" in path.read_text()]
    return [[str(path.relative_to(ROOT))] for path in scripts] + [["ldm", name] for name in COMMANDS]


def test_help_and_unknown_flags_need_no_torch() -> None:
    found = commands()
    assert len(found) > 30
    for word, wanted in (("--help", 0), ("--no-such-flag", 2)):
        answers = typed([[*line, word] for line in found])
        slow = {" ".join(line): heavy for line, (_, heavy) in zip(found, answers, strict=True) if heavy}
        assert slow == {}
        assert {code for code, _ in answers} == {wanted}


CONDITIONAL = "sampling/conditional_sampling.py --yaml configs/quickstart/latent-diffusion.yaml"
MODEL = f"{CONDITIONAL} --ckpt checkpoints/glyphs32-ldm.safetensors"


@pytest.mark.parametrize(
    "line",
    [
        f"{MODEL} -o a.txt",
        f"{MODEL} -o /proc/none/a.pt",
        f"{MODEL} -o a.pt -n 0",
        f"{MODEL} -o a.pt --eta 2",
        f"{MODEL} -o a.pt --steps 0",
        f"{MODEL} -o a.pt --plms --eta 1",
        f"{MODEL} -o a.pt --shard 5/4",
        f"{MODEL} -o a.png --shard 1/2",
        f"{CONDITIONAL} --ckpt none.ckpt -o a.pt",
        "sampling/unconditional_sampling.py --yaml none.yaml --ckpt none.ckpt",
        "sampling/cond_sampling_test.py -y none.yaml -ckpt none.ckpt -c 0",
        "sampling/caption_sampling.py --yaml a.yaml --ckpt a.ckpt -o a.pt --prompts none.txt",
        "txt2img.py --yaml none.yaml --ckpt none.ckpt --prompt a",
        "ldm sample --yaml none.yaml --ckpt none.ckpt -o a.pt --prompt a",
    ],
)
def test_mistakes_are_refused_without_torch(line: str) -> None:
    ((code, heavy),) = typed([line.split()])
    assert code == 2 and heavy == []


def test_sampling_imports_no_trainer_and_no_accountant(tmp_path: Path) -> None:
    files = "--yaml configs/quickstart/latent-diffusion.yaml --ckpt checkpoints/glyphs32-ldm.safetensors"
    lines = [
        f"{command} {files} -o {tmp_path / output} -c 3 -n 1 --steps 2"
        for command, output in (("ldm sample", "a.pt"), ("sampling/conditional_sampling.py", "b.png"))
    ]
    assert typed([line.split() for line in lines], NOT_FOR_SAMPLING) == [(0, []), (0, [])]
    assert (tmp_path / "a.pt").exists() and (tmp_path / "b.png").exists()
