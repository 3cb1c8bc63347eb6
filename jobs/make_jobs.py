"""The SLURM jobs of the DP-LoRA study, rendered from one table of experiments.

Usage: python jobs/make_jobs.py --write

A job is a short shell script with its limits, its requirements and the commands that a user would type. The shell code
is in ``templates/``, the rendering and the files in ``job_files.py``; the table below assigns experiments to templates.
File names, run folders, sample files and statistics all come from the experiment's row, so that fine-tuning, sampling
and scoring of one experiment are consistent. Limits in hours are those of the study.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a file, from any folder

from jobs.job_files import CONFIGS, Job, differences, render, write
from ldm.cli import ArgumentParser, print_end, run
from ldm.errors import UserError

CIN256 = "dp_lora/models/ldm/cin256/model.ckpt"
CIN256_V2 = "models/ldm/cin256-v2/model.ckpt"


@dataclass(frozen=True)
class FineTune:
    """One fine-tuning experiment: YAML file, run folder, initial public model, and samples to draw."""

    config: str  # below ``folder``, without .yaml
    job: str  # below jobs/, without .job
    logs: str  # below $LOGS
    start: str
    hours: int = 4
    aliases: tuple[str, ...] = ()
    folder: str = CONFIGS
    place: str = ""  # of the public models' runs, below $LOGS

    @property
    def stem(self) -> str:
        return self.config.rpartition("/")[2]

    @property
    def yaml(self) -> str:
        return f"{self.folder}/{self.config}.yaml"

    @property
    def released(self) -> bool:
        """Whether the initial model is a released checkpoint, and not a model that another job trains."""
        return self.start.endswith(".ckpt")


@dataclass(frozen=True)
class Sampling:
    """Samples of a fine-tuned model and their score: jobs ``sampling`` and ``fid``, file ``output`` below $OUTPUT."""

    of: FineTune
    sampling: str
    fid: str
    output: str
    statistics: str  # of the real images, below $OUTPUT
    statistics_job: str
    count: int
    classes: tuple[int, ...] = ()
    hours: int = 8
    sampling_aliases: tuple[str, ...] = ()
    fid_aliases: tuple[str, ...] = ()


# --- the table ------------------------------------------------------------------------------------------------------

AUTOENCODERS = ("autoencoder_kl_emnist32_4x4x3", "autoencoder_kl_imagenet32", "autoencoder_kl_imagenet64_32x32x3")
LATENT_DIFFUSION = {  # model to autoencoder
    "emnist32-conditional": "autoencoder_kl_emnist32_4x4x3",
    "imagenet32-conditional": "autoencoder_kl_imagenet32",
    "imagenet32-unconditional": "autoencoder_kl_imagenet32",
    "imagenet64-unconditional": "autoencoder_kl_imagenet64_32x32x3",
}
#: DP-LDM's private experiments, by the beginning of their files' names, and the public model of each.
DP_LDM = {
    "mnist32-dp": "emnist32-conditional",
    "mnist32-kmnist-dp": "kmnist32-conditional",
    "mnist32-svhn-dp": "svhn32-conditional",
    "fmnist32-dp": "emnist32-conditional",
    "cifar32-dp": "imagenet32-conditional",
    "camelyon32-dp": "imagenet32-conditional",
    "celeba32-dp": "imagenet32-unconditional",
    "celeba64-dp": "imagenet64-unconditional",
    "celebahq-dp": CIN256_V2,
}
ABLATION = ("cifar32-dp-eps10-from1", "cifar32-dp-eps10-from5", "cifar32-dp-eps10-from13")
DP_LDM_PUBLIC = {  # model to autoencoder
    "emnist32-conditional": "autoencoder_kl_emnist32_4x4x3",
    "kmnist32-conditional": "autoencoder_kl_kmnist32_4x4x3",
    "svhn32-conditional": "autoencoder_kl_svhn32_4x4x3",
    "imagenet32-conditional": "autoencoder_kl_imagenet32_16x16x3",
    "imagenet32-unconditional": "autoencoder_kl_imagenet32_16x16x3",
    "imagenet64-unconditional": "autoencoder_kl_imagenet64_32x32x3",
}
#: Real test images that score the classifiers of a labelled data set.
TESTS = {
    "mnist32": ("ldm.data.mnist.MNISTVal split:test", "logreg mlp cnn", "dp-ldm"),
    "fmnist32": ("ldm.data.fashion_mnist.FashionMNISTVal split:test", "logreg mlp cnn", "dp-ldm"),
    "cifar32": ("ldm.data.cifar10.CIFAR10Val split:test", "wrn-40-4 resnet-110 resnext-29", "dpimagebench"),
    "camelyon32": ("ldm.data.camelyon.CamelyonVal split:test", "wrn-40-4 resnet-110 resnext-29", "dpimagebench"),
}
#: The study's own experiments on CelebA-HQ, fine-tuned from cin256. Two of them have a second name in the study.
BACKUP = (
    "celebahq_eps1", "celebahq_eps5", "celebahq_eps10",
    "celebahq_eps10_C_big", "celebahq_eps10_C_small",
    "celebahq_eps10_batch_4", "celebahq_eps10_batch_16", "celebahq_eps10_batch_32",
    "celebahq_eps10_k1", "celebahq_eps10_k4", "celebahq_eps10_k8", "celebahq_eps10_r16", "celebahq_eps10_r32",
    "celebahq_eps10_linear_rank", "celebahq_eps10_cosine_rank", "celebahq_no_dp_baseline",
    "chq_eps10_qkvonly", "chq_eps10_projonly",
)  # fmt: skip
SECOND_NAMES = {
    "celebahq_eps10_batch_4": "celebahq_eps10_batch_small",
    "celebahq_eps10_batch_32": "celebahq_eps10_batch_big",
}
_CELEBA = ("eps1", "eps5", "{eps10}", "eps10-onlyproj", "eps10-onlyqkv", "eps10-rank8", "eps10-rank32", "eps10-rank64")
#: Names of the middle experiment (epsilon 10, rank 16, both targets) of the two CelebA sizes.
MIDDLE = {32: "eps10-k2", 64: "eps10"}


def fine_tunes() -> dict[str, FineTune]:
    """Every fine-tuning experiment by its configuration's name below CONFIGS."""
    found = []
    for size, public in ((32, "imagenet32-unconditional"), (64, "imagenet64-unconditional")):
        for suffix in _CELEBA:
            name = f"celeba{size}-dp-{suffix.format(eps10=MIDDLE[size])}"
            found.append(FineTune(f"finetuning/{name}", f"finetuning/{name}", f"finetuning/celeba{size}", public))
    for epsilon in (1, 5, 10):
        for name, logs, public, hours in (
            (f"celebahq_class_eps{epsilon}", "celebahq", CIN256_V2, 4),
            (f"mnist32-class-dp-eps{epsilon}", "mnist", "emnist32-conditional", 12),
            (f"fmnist32-class-dp-eps{epsilon}", "fmnist", "emnist32-conditional", 12),
            (f"cifar10-cond-dp-eps{epsilon}", "cifar10", "imagenet32-conditional", 4),
        ):
            found.append(FineTune(f"finetuning/{name}", f"finetuning/{name}", f"finetuning/{logs}", public, hours))
    for name in BACKUP:
        aliases = [f"backup/finetuning/{other}" for other in _names(name) if other != f"ft_{name}"]
        config = f"backup/{name.replace('_', '-')}"
        found.append(FineTune(config, f"backup/finetuning/ft_{name}", "backup/celebahq", CIN256, 12, tuple(aliases)))
    return {one.config: one for one in found}


def dp_ldm() -> list[FineTune]:
    """Every fine-tuning experiment of DP-LDM itself, in the files of ``configs``."""
    names = [f"{family}-eps{epsilon}" for family in DP_LDM for epsilon in (1, 5, 10)]
    found = []
    for name in [*(f"finetuning/{name}" for name in names), *(f"ablation/{name}" for name in ABLATION)]:
        family = name.partition("/")[2].rpartition("-eps")[0]
        job, logs = f"dp-ldm/{name}", f"dp-ldm/{family}"
        found.append(FineTune(name, job, logs, DP_LDM[family], 12, folder="configs", place="dp-ldm/"))
    return found


def samplings() -> list[Sampling]:
    """Every experiment with sampling and scoring jobs: the study's own, then the tables of the paper."""
    tuned = fine_tunes()
    found = [
        Sampling(
            tuned[f"backup/{name.replace('_', '-')}"],
            f"backup/sampling/{name}",
            f"backup/fid/{name}",
            f"backup/{name}",
            "backup/celebahq_train_stats_256.npz",
            "backup/fid/compute_celebahq_stats.job",
            count=50_000,
            classes=(0, 1),
            sampling_aliases=tuple(f"backup/sampling/{other}" for other in _names(name) if other != name),
            fid_aliases=tuple(f"backup/fid/{other}" for other in _names(name) if other != name),
        )
        for name in BACKUP
    ]

    def table(number: int, data: str, what: str, config: str, count: int, hours: int = 8) -> None:
        hq = data == "celebahq"
        statistics = "table6/celebahq_train_stats_256" if hq else f"celeba_train_stats_{data.removeprefix('celeba')}"
        found.append(
            Sampling(
                tuned[f"finetuning/{config}"],
                f"sampling/table{number}/{data}-{what}-sampling",
                f"fid/table{number}/{data}-{what}-fid",
                f"table{number}/{data}_{what.replace('-', '_')}",
                f"{statistics}.npz",
                "fid/table6/compute_celebahq_stats.job" if hq else "fid/table1/compute_celeba_stats.job",
                count=count,
                classes=(0, 1) if hq else (),
                hours=hours,
            )
        )

    for size, middle in MIDDLE.items():
        data, dp = f"celeba{size}", f"celeba{size}-dp"
        for what, suffix in (("onlyqkv", "eps10-onlyqkv"), ("onlyproj", "eps10-onlyproj"), ("qkv-proj", middle)):
            table(1, data, what, f"{dp}-{suffix}", 60_000, hours=4)
        for what, suffix in (("eps1", "eps1"), ("eps5", "eps5"), ("eps10", middle)):
            table(9, data, what, f"{dp}-{suffix}", 60_000)
        for rank, suffix in ((8, "eps10-rank8"), (16, middle), (32, "eps10-rank32"), (64, "eps10-rank64")):
            table(12, data, f"r{rank}", f"{dp}-{suffix}", 60_000)
    for epsilon in (1, 5, 10):
        table(6, "celebahq", f"eps{epsilon}", f"celebahq_class_eps{epsilon}", 50_000)
        table(9, "celebahq", f"eps{epsilon}", f"celebahq_class_eps{epsilon}", 60_000)
    found += [_of_faces(one) for one in dp_ldm() if one.stem.startswith("celeb")]
    return found


def _of_faces(one: FineTune) -> Sampling:
    """Sampling and scoring jobs of a DP-LDM experiment on faces; the real images' statistics are the study's."""
    hq = one.stem.startswith("celebahq")
    side = "" if hq else one.stem.partition("-")[0].removeprefix("celeba")
    return Sampling(
        one,
        f"dp-ldm/sampling/{one.stem}",
        f"dp-ldm/fid/{one.stem}",
        f"dp-ldm/{one.stem}",
        "table6/celebahq_train_stats_256.npz" if hq else f"celeba_train_stats_{side}.npz",
        "fid/table6/compute_celebahq_stats.job" if hq else "fid/table1/compute_celeba_stats.job",
        count=50_000 if hq else 60_000,
        classes=(0, 1) if hq else (),
    )


def _names(name: str) -> list[str]:
    """All names of one of the study's own experiments, with and without the ``ft_`` of its fine-tuning job."""
    plain = [name, SECOND_NAMES[name]] if name in SECOND_NAMES else [name]
    return [prefix + one for one in plain for prefix in ("", "ft_")]


# --- the scripts ----------------------------------------------------------------------------------------------------


def all_jobs() -> Iterator[Job]:
    """Every script below ``jobs/``."""
    yield from _setup_jobs()
    for name in AUTOENCODERS:
        yield Job(f"autoencoder/{name}.job", "Pre-train a public autoencoder.", 4, "autoencoder", {"name": name})
    for name, autoencoder in LATENT_DIFFUSION.items():
        about = "Pre-train a public latent diffusion model. AUTOENCODER: checkpoint of the autoencoder."
        values = {"name": name, "autoencoder": autoencoder}
        yield Job(f"latent-diffusion/{name}.job", about, 4, "latent_diffusion", values)
    for one in fine_tunes().values():
        yield _fine_tuning_job(one)
    for sampling in samplings():
        yield _sampling_job(sampling)
        yield _fid_job(sampling)
    yield from _statistics_jobs()
    yield from _dp_ldm_jobs()


def _dp_ldm_jobs() -> Iterator[Job]:
    """Public models, private fine-tuning and accuracies of DP-LDM; `samplings` has those that are scored by FID."""
    ours = {"configs": "configs", "place": "dp-ldm/"}
    for name in sorted(set(DP_LDM_PUBLIC.values())):
        values = {"name": name, **ours}
        yield Job(f"dp-ldm/autoencoder/{name}.job", "Pre-train a public autoencoder.", 24, "autoencoder", values)
    for name, autoencoder in DP_LDM_PUBLIC.items():
        about = "Pre-train a public latent diffusion model. AUTOENCODER: checkpoint of the autoencoder."
        values = {"name": name, "autoencoder": autoencoder, **ours}
        yield Job(f"dp-ldm/latent-diffusion/{name}.job", about, 48, "latent_diffusion", values)
    for one in dp_ldm():
        yield _fine_tuning_job(one)
        data = one.stem.partition("-")[0]
        if data in TESTS:
            test, models, protocol = TESTS[data]
            classes = "0 1" if data == "camelyon32" else "0 1 2 3 4 5 6 7 8 9"
            values = {"one": one, "test": test.split(), "models": models, "protocol": protocol, "classes": classes}
            about = "Sample, train classifiers on the samples, score them on real test images. CKPT: the private model."
            path = f"dp-ldm/accuracy/{one.stem}.job"
            yield Job(path, about, 12, "accuracy", values, after=(f"{one.job}.job",))


def _fine_tuning_job(one: FineTune) -> Job:
    return Job(
        f"{one.job}.job",
        "Fine-tune on private images. PRETRAINED: the public checkpoint; YAML: the configuration.",
        one.hours,
        "fine_tuning",
        {"one": one},
        aliases=tuple(f"{alias}.job" for alias in one.aliases),
    )


def _sampling_job(one: Sampling) -> Job:
    return Job(
        f"{one.sampling}.job",
        "Sample a fine-tuned model. CKPT: its checkpoint; SAMPLES: how many; YAML: if not the run's own.",
        one.hours,
        "sampling",
        {"one": one},
        after=(f"{one.of.job}.job",),
        aliases=tuple(f"{alias}.job" for alias in one.sampling_aliases),
    )


def _fid_job(one: Sampling) -> Job:
    return Job(
        f"{one.fid}.job",
        "Score samples against the real training images. Arguments go to fid/compute_samples_stats.py.",
        1,
        "fid",
        {"one": one},
        after=(f"{one.sampling}.job", one.statistics_job),
        aliases=tuple(f"{alias}.job" for alias in one.fid_aliases),
    )


def _statistics_jobs() -> Iterator[Job]:
    for folder, output in (("backup/fid", "backup"), ("fid/table6", "table6")):
        sets = [("split:train size:256", f"{output}/celebahq_train_stats_256.npz")]
        yield Job(
            f"{folder}/compute_celebahq_stats.job",
            "Statistics of the 256x256 CelebA-HQ training images; kept when they are there already.",
            12,
            "statistics",
            {"dataset": "ldm.data.celebahq.CelebAHQ", "sets": sets},
        )
    sets = [(f"size:{size}", f"celeba_train_stats_{size}.npz") for size in (32, 64)]
    yield Job(
        "fid/table1/compute_celeba_stats.job",
        "Statistics of the CelebA training images at both sizes; kept when they are there already.",
        12,
        "statistics",
        {"dataset": "ldm.data.celeba.CelebATrain", "sets": sets},
    )


def _setup_jobs() -> Iterator[Job]:
    yield Job("install_env.job", "Make the environment.", 4, "install_env")
    yield Job(
        "extract_celeba_hq.job",
        "Fetch and unpack CelebA-HQ into ~/.cache/CelebAHQ; --root FOLDER chooses another place.",
        12,
        "extract_celeba_hq",
    )
    models = ["latent-diffusion emnist32-conditional"]
    models += [f"finetuning/mnist mnist32-class-dp-eps{epsilon}" for epsilon in (1, 5, 10)]
    yield Job(
        "count_params_mnist.job",
        "Count the parameters of the EMNIST model and of what was fine-tuned from it; absent ones are left out.",
        1,
        "count_params",
        {"models": models},
    )


def files() -> dict[str, str | Path]:
    """The expected files below ``jobs/``: path to the text of a script, or to the target `Path` of a link."""
    return render(all_jobs())


def main(argv: Sequence[str] | None = None) -> None:
    """Write the files, or check them. Raises UserError when a file differs from the table."""
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="write what differs, remove what is not in the table")
    what.add_argument("--check", action="store_true", help="change nothing; exit code 2 when a file differs")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent)
    args = parser.parse_args(argv)
    wanted = files()
    if args.write:
        print_end(
            f"{args.folder}: {write(args.folder, wanted)} of {len(wanted)} files changed",
            "jobs/submit.sh --dry-run celebahq_eps1",
        )
        return
    lines = differences(args.folder, wanted)
    if lines:
        more = f" and {len(lines) - 1} more" if len(lines) > 1 else ""
        raise UserError(f"{args.folder}/{lines[0]}{more}; type python jobs/make_jobs.py --write")
    print(f"{args.folder}: {len(wanted)} files as the table has them")


if __name__ == "__main__":
    run(main)
