"""What commands share: messages, exit codes, devices."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from ldm.cli import LARGEST_COUNT, ArgumentParser, pick_device, run, seed, split_settings, str2bool, typed
from ldm.errors import Stopped, UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def parser():
    parser = ArgumentParser(prog="verb")
    parser.add_argument("-n", "--num_samples", type=int, default=20, help="how many images")
    parser.add_argument("--quiet", action="store_true", help="say less")
    parser.add_argument("--output", help="where to")
    return parser


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--num_sample", "3"], "error: unknown flag '--num_sample'; did you mean '--num_samples'?\n"),
        (["--zzz=3"], "error: unknown flag '--zzz'; --help lists the flags\n"),
        (["stray"], "error: unexpected argument 'stray'; --help lists what verb takes\n"),
        (["-n", "many"], "error: argument -n/--num_samples: invalid int value: 'many'\n"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(parser, capsys, line, message):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(line)
    assert stop.value.code == 2
    assert capsys.readouterr().err == message


def test_flags_are_not_abbreviated(parser):
    with pytest.raises(SystemExit):
        parser.parse_args(["--num", "3"])


def test_hyphens_and_underscores_are_alike(parser):
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("rest", nargs="*")
    args = parser.parse_args(["--num-samples=3", "--dry_run", "--output", "a-b_c", "--", "--dry_run"])
    assert (args.num_samples, args.dry_run, args.output, args.rest) == (3, True, "a-b_c", ["--dry_run"])
    assert parser.parse_known_args(["--num-samples", "4", "--dry_runs"])[1] == ["--dry_runs"]


def test_help_shows_defaults_only_where_there_are_any(parser):
    text = parser.format_help()
    assert "how many images (default: 20)" in text
    assert "None" not in text and "False" not in text


@pytest.mark.parametrize("word", ["yes", "True", "t", "Y", "1", True])
def test_words_for_yes(word):
    assert str2bool(word) is True


@pytest.mark.parametrize("word", ["no", "FALSE", "f", "n", "0", False])
def test_words_for_no(word):
    assert str2bool(word) is False


def test_other_words_are_refused():
    with pytest.raises(argparse.ArgumentTypeError, match="expected yes or no, got 'maybe'"):
        str2bool("maybe")


def test_user_errors_become_one_line(capsys):
    def main():
        raise UserError("no such thing; type another")

    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: no such thing; type another\n"


def test_faults_of_the_program_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: print(1 / 0))


def test_device_defaults_to_what_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device(None) == torch.device("cuda")


def test_each_process_of_torchrun_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for rank, wanted in (("0", "cuda:0"), ("1", "cuda:1"), ("2", "cuda:0")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert pick_device() == pick_device("cuda") == torch.device(wanted)
    assert pick_device("cpu") == torch.device("cpu")


def test_asking_for_a_gpu_that_is_not_there_names_the_way_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="type --device cpu"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="there are 2 GPUs; type --device cuda:1"):
        pick_device("cuda:2")


def test_what_is_no_device_is_named():
    with pytest.raises(UserError, match="'gpuu' is no device"):
        pick_device("gpuu")


def test_help_does_not_wait_for_torch():
    code = "import sys, ldm.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_seed_is_one_that_every_generator_takes():
    assert [seed(text) for text in ("0", "23", "4294967295")] == [0, 23, 2**32 - 1]
    for text in ("-1", "4294967296", "99999999999999999999", "1.5", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a whole number from 0 to 4294967295, got"):
            seed(text)


def test_every_command_with_a_seed_checks_it():
    commands = [path for folder in ("sampling", "scripts", "fid") for path in (ROOT / folder).glob("*.py")]
    for path in (*commands, ROOT / "txt2img.py"):
        assert 'add("--seed", type=int' not in path.read_text(), path


def test_settings_are_parted_from_other_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.b=3").touch()
    words = ["--base", "f.yaml", "model.params.x=1", "-t", "data=null", "a.b=3", "--max=3", "x=1"]
    assert split_settings(words) == (
        ["model.params.x=1", "data=null"],
        ["--base", "f.yaml", "-t", "a.b=3", "--max=3", "x=1"],
    )


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "a/last.ckpt"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
        RuntimeError("basic_ios::clear: iostream error"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_line(capsys, error):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        run(main)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith("error: ") and "free some space" in line


def test_a_signal_is_in_the_exit_code(capsys):
    def main():
        raise Stopped(15, "stopped by SIGTERM; to go on, type x")

    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == 143 and capsys.readouterr().err == "stopped by SIGTERM; to go on, type x\n"


def test_a_bar_in_a_log_file_does_not_fill_it() -> None:
    code = """
        from ldm.cli import run
        def main():
            import time
            from tqdm import tqdm
            for _ in tqdm(range(40)): time.sleep(0.02)
        run(main)
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TQDM_")}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert "100%" in done.stderr and done.stderr.count("it/s") <= 3, done.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/data/a.pt"), "'/data/a.pt': Permission denied"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x.pt"), "'x.pt': File name too long"),
        (MemoryError(), "not enough memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "not enough memory"),
        (OSError("out of memory error when reading image file"), "not enough memory"),
        (RuntimeError("[x] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "(can't"),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB\nmore"), "--batch_size"),
    ],
)
def test_what_the_system_refuses_is_one_line(capsys, error, words):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        run(main)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith("error: ") and words in line


def test_errors_of_the_program_are_no_refusals():
    for error in (OSError("no number and no file"), OSError(errno.EACCES, "Permission denied"), RuntimeError("shape")):
        with pytest.raises(type(error)):
            run(lambda error=error: (_ for _ in ()).throw(error))


def command(code: str, **more: object) -> subprocess.Popen[str]:
    """A process that runs `main` of ``code`` as a command."""
    text = f"from ldm.cli import run\n{textwrap.dedent(code)}\nrun(main)"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", text], **{**pipes, **more})


def test_sigterm_leaves_nothing_half_written(tmp_path):
    code = f"""
        def main():
            import sys, time
            from pathlib import Path
            from ldm.files import new_folder
            with new_folder(Path({str(tmp_path / "out")!r})) as staging:
                (staging / "a").touch()
                print("writing", flush=True)
                time.sleep(60)
    """
    with command(code) as process:
        assert process.stdout.readline() == "writing\n"
        process.terminate()
        assert process.stderr.read() == "stopped by SIGTERM\n" and process.wait() == 143
    assert list(tmp_path.iterdir()) == []


def test_sigterm_is_as_before_after_a_command():
    before = signal.getsignal(signal.SIGTERM)
    seen = []
    run(lambda: seen.append(signal.getsignal(signal.SIGTERM)))
    assert signal.getsignal(signal.SIGTERM) == before and seen[0] not in (signal.SIG_DFL, None)


def test_a_reader_that_has_gone_is_no_fault():
    with command("def main():\n    for _ in range(10**6): print('line')") as process:
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 141


def test_names_that_are_no_text_can_be_printed():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with command("def main():\n    print('\\udce9 ε')", env=environment) as process:
        assert process.stdout.read() == "\\udce9 \\u03b5\n" and process.wait() == 0


def test_a_long_setting_is_no_file(tmp_path, monkeypatch):
    word = f"data.params.train.params.class_names=[{','.join(['class'] * 100)}]"
    assert split_settings([word]) == ([word], [])


def test_a_device_without_values_is_refused():
    for name in ("meta", "xpu", "xla"):
        with pytest.raises(UserError, match=f"device '{name}' does not compute here; type --device cpu"):
            pick_device(name)


def test_a_path_is_typed_in_quotes_where_it_needs_them():
    for path in ("logs/run", "my images/a b", "it's $HOME"):
        assert shlex.split(f"x {typed(path)}") == ["x", path]
    assert typed(Path("logs/run")) == "logs/run"


@pytest.mark.parametrize("words", [["--count=" + "9" * 20], ["--counts", "1", "-" + "9" * 20]])
def test_a_number_that_no_library_counts_to_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser(prog="x")
    parser.add_argument("--count", type=int)
    parser.add_argument("--counts", type=int, nargs="+")
    assert parser.parse_args([f"--count={LARGEST_COUNT}"]).count == LARGEST_COUNT
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(words)
    assert ended.value.code == 2 and "is too large a number" in capsys.readouterr().err
