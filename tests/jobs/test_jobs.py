"""Every job of the DP-LoRA study: the table's own text, commands that parse, files that exist, names that agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from jobs import make_jobs as jobs
from jobs.job_files import HANDWRITTEN, differences, write
from ldm.config import load_config
from tests.jobs.dry import JOBS, ROOT, bash, dry_run, dry_run_all, parse
from tests.tiny_runs import Commands, commands

__all__ = ["commands"]

ALL = sorted(path for path, content in jobs.files().items() if isinstance(content, str))
ALIASES = {path: content for path, content in jobs.files().items() if isinstance(content, Path)}

STUDY_NAMES = """
celebahq_eps1 celebahq_eps5 celebahq_eps10 celebahq_eps10_C_big celebahq_eps10_C_small celebahq_eps10_batch_big
celebahq_eps10_batch_small celebahq_eps10_k4 celebahq_eps10_k8 celebahq_eps10_r16 celebahq_eps10_r32 chq_eps10_qkvonly
chq_eps10_projonly celebahq_eps10_k1 celebahq_eps10_batch_4 celebahq_eps10_batch_16 celebahq_eps10_batch_32
celebahq_eps10_linear_rank celebahq_eps10_cosine_rank celebahq_no_dp_baseline
"""
TABLES_NAMES = """
table1/celeba32-onlyqkv table1/celeba32-onlyproj table1/celeba32-qkv-proj table1/celeba64-onlyqkv
table1/celeba64-onlyproj table1/celeba64-qkv-proj table6/celebahq-eps1 table6/celebahq-eps5 table6/celebahq-eps10
table9/celeba32-eps1 table9/celeba32-eps5 table9/celeba32-eps10 table9/celeba64-eps1 table9/celeba64-eps5
table9/celeba64-eps10 table9/celebahq-eps1 table9/celebahq-eps5 table9/celebahq-eps10 table12/celeba32-r8
table12/celeba32-r16 table12/celeba32-r32 table12/celeba32-r64 table12/celeba64-r8 table12/celeba64-r16
table12/celeba64-r32 table12/celeba64-r64
"""
PUBLISHED = {
    "install_env",
    "extract_celeba_hq",
    "count_params_mnist",
    *(f"autoencoder/autoencoder_kl_{name}" for name in ("emnist32_4x4x3", "imagenet32", "imagenet64_32x32x3")),
    "latent-diffusion/emnist32-conditional",
    "latent-diffusion/imagenet32-conditional",
    "latent-diffusion/imagenet32-unconditional",
    "latent-diffusion/imagenet64-unconditional",
    *(f"finetuning/celeba{size}-dp-eps{epsilon}" for size in (32, 64) for epsilon in (1, 5)),
    *(f"finetuning/celeba{size}-dp-eps10-only{part}" for size in (32, 64) for part in ("proj", "qkv")),
    *(f"finetuning/celeba{size}-dp-eps10-rank{rank}" for size in (32, 64) for rank in (8, 32, 64)),
    "finetuning/celeba32-dp-eps10-k2",
    "finetuning/celeba64-dp-eps10",
    *(f"finetuning/celebahq_class_eps{epsilon}" for epsilon in (1, 5, 10)),
    *(f"finetuning/{data}32-class-dp-eps{epsilon}" for data in ("mnist", "fmnist") for epsilon in (1, 5, 10)),
    *(f"finetuning/cifar10-cond-dp-eps{epsilon}" for epsilon in (1, 5, 10)),  # of the paper's code
    *(f"backup/{step}/{prefix}{name}" for step in ("finetuning", "sampling", "fid") for prefix in ("", "ft_")
      for name in STUDY_NAMES.split()),
    "backup/fid/compute_celebahq_stats",
    *(f"sampling/{name}-sampling" for name in TABLES_NAMES.split()),
    *(f"fid/{name}-fid" for name in TABLES_NAMES.split()),
    "fid/table1/compute_celeba_stats",
    "fid/table6/compute_celebahq_stats",
}  # fmt: skip


@cache
def values(path: str) -> Any:
    """The merged values of a configuration file below the root."""
    return OmegaConf.to_container(load_config([ROOT / path]))


def family(path: str) -> Any:
    """The values of the file that a variant in the same folder builds on: quick, and all that variants share."""
    base = re.search(r"^base: ([^/\n]+)$", (ROOT / path).read_text(), flags=re.MULTILINE)
    return family(f"{Path(path).parent}/{base[1]}") if base else values(path)


@pytest.fixture(scope="module")
def lines() -> dict[str, list[list[str]]]:
    """Every job's commands, as a dry run prints them."""
    return dry_run_all(ALL)


# ---------------------------------------------------------------------- files


def test_the_files_are_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert differences(JOBS, jobs.files()) == [], "type python jobs/make_jobs.py --write"
    jobs.main(["--check"])
    assert "as the table has them" in capsys.readouterr().out


def test_the_script_runs_as_a_file_from_any_folder(tmp_path: Path) -> None:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(JOBS / "make_jobs.py"), "--check"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_names_are_the_studys() -> None:
    assert {path.removesuffix(".job") for path in jobs.files() if not path.startswith("dp-ldm/")} == PUBLISHED


def test_every_private_file_of_dp_ldm_has_a_job() -> None:
    """But for those with captions, whose samples need some, and for the original's second name."""
    folders = [ROOT / "configs" / "finetuning", ROOT / "configs" / "ablation"]
    shipped = {path.stem for folder in folders for path in folder.glob("*.yaml")}
    tuned = {Path(path).stem for path in ALL if re.match(r"dp-ldm/(finetuning|ablation)/", path)}
    assert tuned == {name for name in shipped if "txt2img" not in name and not name.startswith("emnist32")}
    scored = {Path(path).stem for path in ALL if re.match(r"dp-ldm/(accuracy|fid)/", path)}
    assert scored == tuned
    public = {Path(path).stem for path in ALL if path.startswith("dp-ldm/latent-diffusion/")}
    assert public == {start for start in jobs.DP_LDM.values() if not start.endswith(".ckpt")}


def test_writing_mends_what_differs_and_leaves_handwritten_files(commands: Commands) -> None:
    folder = commands.folder / "jobs"
    assert commands.type(jobs.main, "--write", "--folder", folder) == 0
    written = {str(path.relative_to(folder)) for path in folder.rglob("*.job")}
    assert written == set(jobs.files()) and (folder / ALL[0]).stat().st_mode & 0o100
    (folder / "common.sh").write_text("# mine\n")
    (folder / "stray.job").write_text("# no row\n")
    (folder / ALL[0]).write_text("# edited\n")
    (folder / next(iter(ALIASES))).unlink()
    assert commands.type(jobs.main, "--check", "--folder", folder) == 2
    assert "stray.job: is not in the table and 2 more; type python jobs/make_jobs.py --write" in commands.err
    assert commands.type(jobs.main, "--write", "--folder", folder) == 0 and "3 of" in commands.out
    assert differences(folder, jobs.files()) == [] and (folder / "common.sh").read_text() == "# mine\n"
    assert write(folder, jobs.files()) == 0


def test_links_lead_to_the_job_of_the_same_experiment() -> None:
    assert ALIASES
    for alias, target in ALIASES.items():
        assert (Path(alias).parent / target).as_posix() in ALL
        names = [re.sub(r"^ft_|\.job$", "", path.name) for path in (Path(alias), target)]
        assert names[0] == names[1] or jobs.SECOND_NAMES[names[1]] == names[0]


def test_scripts_are_bash() -> None:
    scripts = [*ALL, *(name for name in HANDWRITTEN if name.endswith(".sh"))]
    done = bash("-c", 'for job in "$@"; do bash -n "jobs/$job" || exit 1; done', "all", *scripts)
    assert done.returncode == 0, done.stderr


def test_a_job_is_limited_and_says_what_it_is() -> None:
    for path in ALL:
        head = (JOBS / path).read_text().splitlines()
        assert head[0] == "#!/bin/bash" and f"#SBATCH --job-name={Path(path).stem}" in head
        assert any(re.fullmatch(r"#SBATCH --time=\d+:00:00", line) for line in head)
        assert max(map(len, head)) <= 130


# ---------------------------------------------------------------------- commands


def test_every_command_parses_and_names_files_that_are_there(
    lines: dict[str, list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(lines) == set(ALL)
    for path, found in lines.items():
        assert found or path == "install_env.job"
        for command in found:
            assert (ROOT / command[0]).is_file(), f"{path}: {command[0]}"
            given = parse(command, monkeypatch)
            for name in [*given.get("base", []), given.get("yaml")]:
                assert name is None or (ROOT / name).is_file(), f"{path}: {name}"


def test_settings_of_a_job_are_keys_of_its_configuration(
    lines: dict[str, list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    for path, (command, *_) in ((path, found) for path, found in lines.items() if found and found[0][0] == "main.py"):
        given = parse(command, monkeypatch)
        assert given["train"] is True and given["scale_lr"] is True and given["trainer"]["gpus"] == "0,"
        config = family(given["base"][0])
        for setting in given["dotlist"]:
            value: Any = config
            for part in setting.partition("=")[0].split("."):
                assert part in value, f"{path}: {setting}"
                value = value[part]
            seen.add(setting.partition("=")[0])
        private = "finetuning/" in path or "ablation/" in path
        assert given["trainer"].get("accelerator") == ("gpu" if private else None)
    assert seen == {"model.params.ckpt_path", "model.params.first_stage_config.params.ckpt_path"}


def test_a_mistyped_flag_would_be_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(
            ["sampling/conditional_sampling.py", "--yaml", "a", "--ckpt", "b", "-o", "c", "--outptu", "c"], monkeypatch
        )
    assert "--outptu" in capsys.readouterr().err


def test_unset_checkpoints_are_those_of_the_job_before(lines: dict[str, list[list[str]]]) -> None:
    """Each default is where the job that makes it writes: <logs>/<run of that configuration>."""
    written = {}
    for found in lines.values():
        if found and found[0][0] == "main.py":
            words = found[0]
            written[words[words.index("-l") + 1], Path(words[words.index("--base") + 1]).stem] = True
    used = 0
    for path, found in lines.items():
        for command in found:
            for word in command:
                if (
                    default := re.fullmatch(r"(?:[\w.]+=)?(logs/.*)/RUN_(.*)/checkpoints/last\.ckpt", word)
                ) is not None:
                    used += 1
                    assert (default[1], default[2]) in written, f"{path}: {word}"
    assert used > 70


def test_fine_tuning_sampling_and_score_of_an_experiment_agree(lines: dict[str, list[list[str]]]) -> None:
    statistics = {}
    for path, found in lines.items():
        if "compute_celeb" in path:
            statistics |= {command[command.index("--output") + 1]: path for command in found}
    for fid in (path for path in ALL if re.search(r"(^|/)fid/", path) and "compute_celeb" not in path):
        sampling, real = after(fid)
        (tuning,) = after(sampling)
        (tuned,), (sampled,), (scored, compared) = lines[tuning], lines[sampling], lines[fid]
        value = lambda command, flag: command[command.index(flag) + 1]  # noqa: E731
        assert value(sampled, "--yaml") == value(tuned, "--base")
        assert value(scored, "--samples") == value(sampled, "--output")
        assert value(compared, "--path2") == value(scored, "--output")
        assert statistics[value(compared, "--path1")] == real
        config = family(value(tuned, "--base"))
        conditional = config["model"]["params"]["cond_stage_config"] != "__is_unconditional__"
        assert sampled[0] == f"sampling/{'conditional' if conditional else 'unconditional'}_sampling.py"
        size = re.search(r"_(\d+)\.npz", value(compared, "--path1"))
        assert size is not None
        assert config["data"]["params"]["train"]["params"]["size"] == int(size[1])


def after(path: str) -> list[str]:
    (line,) = [line for line in (JOBS / path).read_text().splitlines() if line.startswith("# After: ")]
    return [job.removeprefix("jobs/") for job in line.removeprefix("# After: ").split()]


def test_real_statistics_are_of_the_training_images(
    lines: dict[str, list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in [path for path in ALL if "compute_celeb" in path]:
        for command in lines[path]:
            given = parse(command, monkeypatch)
            train = given["dataset"] == "ldm.data.celeba.CelebATrain" or "split:train" in given["args"]
            assert train and any(word.startswith("size:") for word in given["args"])


@pytest.mark.parametrize("table", [1, 9, 12])
def test_a_table_compares_what_differs_in_one_factor(table: int, lines: dict[str, list[list[str]]]) -> None:
    free = {1: "model.params.model_lora_target", 9: "model.params.dp_config.epsilon", 12: "model.params.model_lora_r"}
    columns: dict[str, list[dict[str, Any]]] = {}
    for path, (command,) in ((path, lines[path]) for path in ALL if path.startswith(f"sampling/table{table}/")):
        row = flat(values(command[command.index("--yaml") + 1]))
        columns.setdefault(Path(path).stem.partition("-")[0], []).append(row)
    for rows in columns.values():
        assert len(rows) >= 3
        differing = {key for key in rows[0] if any(row[key] != rows[0][key] for row in rows)}
        assert differing == {free[table]}


def flat(values: Any, where: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {where.removeprefix("."): values}
    return {key: value for name, part in values.items() for key, value in flat(part, f"{where}.{name}").items()}


# ---------------------------------------------------------------------- variables and messages


def test_paths_come_from_variables() -> None:
    given = {"PRETRAINED": "my model.ckpt", "LOGS": "elsewhere", "PYTHON": "py", "YAML": "mine.yaml"}
    (command,) = dry_run("backup/finetuning/ft_celebahq_eps1.job", "data.params.batch_size=4", **given)
    assert command[-2:] == ["model.params.ckpt_path=my model.ckpt", "data.params.batch_size=4"]
    assert "mine.yaml" in command and "elsewhere/backup/celebahq" in command
    (command,) = dry_run("backup/sampling/celebahq_eps1.job", CKPT="a.ckpt", SAMPLES=10, OUTPUT="out")
    assert "out/backup/celebahq_eps1.pt" in command and "a.ckpt" in command
    assert command[command.index("--num_samples") + 1] == "10"


def test_sampling_takes_the_newest_finished_run_and_its_own_configuration(tmp_path: Path) -> None:
    for run in ("2026-01-02T00-00-00_celebahq-eps1", "2026-01-03T00-00-00_celebahq-eps1",
                "2026-01-04T00-00-00_celebahq-eps10", "2026-01-05T00-00-00_celebahq-eps1"):  # fmt: skip
        folder = tmp_path / "backup" / "celebahq" / run
        (folder / "configs").mkdir(parents=True)
        (folder / "configs" / "x-project.yaml").touch()
        if "05T" not in run:  # the newest has not come to a checkpoint
            (folder / "checkpoints").mkdir()
            (folder / "checkpoints" / "last.ckpt").touch()
    (command,) = dry_run("backup/sampling/ft_celebahq_eps1.job", LOGS=tmp_path)
    chosen = command[command.index("--ckpt") + 1]
    assert chosen.endswith("2026-01-03T00-00-00_celebahq-eps1/checkpoints/last.ckpt")
    assert (
        Path(command[command.index("--yaml") + 1]).resolve() == Path(chosen).parents[1] / "configs" / "x-project.yaml"
    )


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("backup/finetuning/ft_celebahq_eps1.job", "there is no nothing.ckpt; docs/dp-lora.md says"),
        ("backup/sampling/celebahq_eps1.job", "no finished run of celebahq-eps1 in .*; run its job first, or set CK"),
        ("finetuning/celeba32-dp-eps1.job", "no finished run of imagenet32-unconditional in .* set PRETRAINED="),
        ("latent-diffusion/emnist32-conditional.job", "autoencoder_kl_emnist32_4x4x3 in .* set AUTOENCODER="),
        ("backup/fid/celebahq_eps1.job", r"there is no .*celebahq_eps1\.pt; jobs/backup/sampling/celebahq_eps1.job"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_before_anything_starts(job: str, message: str, tmp_path: Path) -> None:
    given = {"PRETRAINED": "nothing.ckpt"} if job.startswith("backup/finetuning") else {}
    done = bash(JOBS / job, PYTHON="false", LOGS=tmp_path, OUTPUT=tmp_path, **given)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.match(f"error: .*{message}", line)


def test_models_that_are_not_there_are_left_out_of_the_count(tmp_path: Path) -> None:
    folder = tmp_path / "finetuning" / "mnist" / "2026-01-02T00-00-00_mnist32-class-dp-eps5" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.ckpt").touch()
    done = bash(JOBS / "count_params_mnist.job", PYTHON="echo", LOGS=tmp_path)
    assert done.returncode == 0
    assert done.stdout.count("left out: there is no run of") == 3
    assert f"scripts/count_parameters.py --ckpt {folder / 'last.ckpt'}" in done.stdout


def test_statistics_that_are_there_are_kept(tmp_path: Path) -> None:
    (tmp_path / "celeba_train_stats_32.npz").touch()
    done = bash(JOBS / "fid" / "table1" / "compute_celeba_stats.job", PYTHON="echo", OUTPUT=tmp_path)
    assert done.returncode == 0 and done.stdout.count("compute_dataset_stats") == 1 and "size:64" in done.stdout


def test_under_slurm_commands_are_steps_of_the_job(tmp_path: Path) -> None:
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\necho "step: $*"\n')
    srun.chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    done = bash(JOBS / "extract_celeba_hq.job", "--root", "r", PATH=path, SLURM_JOB_ID=1, PYTHON="py")
    assert done.stdout == "step: py scripts/extract_celeba_hq.py --root r\n"


# ---------------------------------------------------------------------- submit.sh


def submit(*words: str, **variables: object) -> subprocess.CompletedProcess[str]:
    return bash(JOBS / "submit.sh", *words, **variables)


@pytest.mark.parametrize("experiment", ["celebahq_eps10_batch_32", "ft_celebahq_eps10_batch_big"])
def test_a_dry_run_shows_the_chain(experiment: str) -> None:
    done = submit("--dry-run", experiment, "model.params.model_lora_r=4", PARTITION="mine")
    assert done.returncode == 0
    one, two, three, four = (re.sub(r"^JOB\d=\$\(sbatch --parsable --partition=mine |\)$", "", line)
                             for line in done.stdout.splitlines())  # fmt: skip
    assert one == "jobs/backup/finetuning/ft_celebahq_eps10_batch_32.job model.params.model_lora_r=4"
    assert two == "--dependency=afterok:JOB1 jobs/backup/sampling/celebahq_eps10_batch_32.job"
    assert three == "jobs/backup/fid/compute_celebahq_stats.job"
    assert four == "--dependency=afterok:JOB2:JOB3 jobs/backup/fid/celebahq_eps10_batch_32.job"


def test_a_table_and_a_single_job_are_submitted_by_name() -> None:
    done = submit("--dry-run", "table9/celeba32-eps10")
    assert [line.split()[-1].rstrip(")") for line in done.stdout.splitlines()] == [
        "jobs/finetuning/celeba32-dp-eps10-k2.job",
        "jobs/sampling/table9/celeba32-eps10-sampling.job",
        "jobs/fid/table1/compute_celeba_stats.job",
        "jobs/fid/table9/celeba32-eps10-fid.job",
    ]
    (line,) = submit("--dry-run", "jobs/finetuning/mnist32-class-dp-eps1.job").stdout.splitlines()
    assert line == "JOB1=$(sbatch --parsable jobs/finetuning/mnist32-class-dp-eps1.job)"


def test_numbers_of_submitted_jobs_are_handed_on(tmp_path: Path) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\necho "$((100 + $(wc -l < {tmp_path}/calls)));cluster"\n'
    )
    sbatch.chmod(0o755)
    done = submit("celebahq_eps1", PATH=f"{tmp_path}:/usr/bin:/bin")
    assert done.returncode == 0 and done.stdout.split()[::2] == ["101", "102", "103", "104"]
    calls = (tmp_path / "calls").read_text().splitlines()
    assert "--dependency=afterok:101 " in calls[1] and "--dependency=afterok:102:103 " in calls[3]


@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        ([], {}, "name an experiment"),
        (["--dry-run", "celebahq_eps2"], {}, "there is no experiment celebahq_eps2"),
        (["celebahq_eps1"], {"PATH": "/usr/bin:/bin"}, "no sbatch here; type: bash jobs/backup/fid/celebahq_eps1.job"),
        (["--dry-run", "celebahq_eps1"], {"CKPT": "a.ckpt"}, "CKPT would be sampled"),
    ],
)  # fmt: skip
def test_what_cannot_be_submitted_is_refused(words: list[str], variables: dict[str, str], message: str) -> None:
    done = submit(*words, **variables)
    assert done.returncode == 2 and message in done.stderr and done.stdout == ""
