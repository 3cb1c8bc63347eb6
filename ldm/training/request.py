"""`RunRequest`: a run's whole configuration, read and checked without torch, Lightning, data or model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from callbacks.slurm_requeue import noted_run
from ldm.cli import LARGEST_SEED
from ldm.config import allow_target, load_config, to_plain
from ldm.errors import UserError, nearest
from ldm.files import read_text, require_regular
from ldm.models.diffusion.sampling_section import SamplingSection
from ldm.training.learning_rate import RateForBatch, base_learning_rate, rate_of_files
from ldm.training.newest_checkpoint import newest_checkpoint
from ldm.training.options import RunOptions
from ldm.training.run_directory import RunDirectory, new_run, parents_run, resumed_run
from ldm.training.trainer_flags import merge_flags, translate_legacy_arguments

SECTIONS = ("model", "data", "lightning", "sampling")
LIGHTNING_KEYS = ("trainer", "callbacks", "logger", "modelcheckpoint")
MODEL_KEYS = ("target", "params", "base_learning_rate")


@dataclass(frozen=True)
class RunRequest:
    """The checked request for a run.

    ``config`` holds the sections model and data, ``lightning`` the Trainer's, ``settings`` the Trainer arguments of
    today. ``made_for`` is the base learning rate with its batch size, or None if the files do not give both.
    """

    options: RunOptions
    run_dir: RunDirectory
    config: DictConfig
    lightning: DictConfig
    settings: dict[str, Any]
    base_rate: float
    made_for: RateForBatch | None

    @property
    def model_params(self) -> dict[str, Any]:
        """``model.params`` as plain values."""
        return to_plain(self.config.model).get("params") or {}

    @property
    def dp_config(self) -> dict[str, Any]:
        """``dp_config`` as the files give it; empty without one."""
        return dict(self.model_params.get("dp_config") or {})

    @property
    def private(self) -> bool:
        """Whether the configuration asks for training under differential privacy."""
        return bool(self.dp_config.get("enabled", False))

    @property
    def resume(self) -> Path | None:
        """The checkpoint from which training resumes, or None for a new run."""
        given = self.settings.get("ckpt_path")
        return self.run_dir.resume_from or (Path(str(given)) if given else None)


def read_request(options: RunOptions) -> RunRequest:
    """Read the files, flags and settings of a run, and check them without data or model.

    Raises UserError for mistakes that the user can correct.
    """
    for prefix in options.allow_target:
        allow_target(prefix)
    if not 0 <= options.seed <= LARGEST_SEED:
        raise UserError(f"--seed {options.seed}: give a whole number from 0 to {LARGEST_SEED}")
    run_dir, paths, config = read_run(options)
    lightning = config.pop("lightning", None) or OmegaConf.create({})
    check_sections(config, lightning)
    settings = translate_legacy_arguments(merge_flags(to_plain(lightning.get("trainer") or {}), options.trainer))
    lightning.trainer = OmegaConf.create(settings)
    typed = any(entry.startswith("model.base_learning_rate=") for entry in options.dotlist)
    made_for = None if typed else rate_of_files(paths)
    request = RunRequest(options, run_dir, config, lightning, settings, base_learning_rate(config), made_for)
    check_privacy_settings(request)
    SamplingSection.read(to_plain(config.get("sampling"))).check(request.dp_config)
    check_named_files(request)
    return request


def read_run(options: RunOptions) -> tuple[RunDirectory, list[str], DictConfig]:
    """Find or name the run directory, and merge its configuration: earlier files, ``--base`` files, dot-list."""
    if options.name and options.resume:
        raise UserError("-n/--name and -r/--resume exclude each other: a resumed run keeps its name")
    name = "" if options.name is True else str(options.name)
    resume = options.resume or requeued_run(options.logdir)
    if resume:
        run_dir = resumed_run(resume)
        paths = [str(path) for path in run_dir.earlier_configs()] + options.base
    else:
        if not options.base:
            raise UserError("no configuration: type --base FILE.yaml, or --resume RUN_DIRECTORY")
        run_dir = parents_run() or new_run(options.logdir, name, options.base, options.postfix)
        paths = options.base
    return run_dir, paths, load_config(paths, options.dotlist)


def requeued_run(logdir: str) -> str:
    """The run of an earlier attempt of this SLURM job, if it has written a checkpoint."""
    path = noted_run(logdir)
    return str(path) if path is not None and newest_checkpoint(path / "checkpoints") is not None else ""


def check_sections(config: DictConfig, lightning: DictConfig) -> None:
    """Refuse unknown top-level sections, and missing ones."""
    for key in map(str, config):
        if key not in SECTIONS:
            raise UserError(f"unknown section {key!r} in the configuration{nearest(key, SECTIONS)}")
    if not isinstance(lightning, DictConfig):
        raise UserError(f"lightning: {lightning!r} is no section; give trainer and callbacks below it")
    for key in map(str, lightning):
        if key not in LIGHTNING_KEYS:
            raise UserError(f"unknown key 'lightning.{key}'{nearest(key, LIGHTNING_KEYS)}")
    for key in ("model", "data"):
        if not isinstance(config.get(key), DictConfig):
            raise UserError(f"the configuration has no section {key!r}; add one with target and params")
    for key in map(str, config.model):
        if key not in MODEL_KEYS:
            raise UserError(f"unknown key 'model.{key}'{nearest(key, MODEL_KEYS)}")
    for where, section in (("model", config.model), ("data", config.data), ("lightning", lightning)):
        for key in {"params", "trainer", "callbacks"} & set(map(str, section)):
            value = None if OmegaConf.is_missing(section, key) else section.get(key)
            if value is not None and not isinstance(value, DictConfig):
                raise UserError(f"{where}.{key}: {value!r} is no section; give its keys below it")


def check_privacy_settings(request: RunRequest) -> None:
    """Check ``dp_config.enabled``, and refuse to train without privacy in the directory of a private run.

    Steps without noise would invalidate the privacy card of such a directory. Raises UserError.
    """
    given = request.model_params.get("dp_config")
    if given is not None and not isinstance(given, Mapping):
        raise UserError(f"model.params.dp_config: {given!r} is no section; give enabled, epsilon, delta, max_grad_norm")
    enabled = request.dp_config.get("enabled", False)
    if not isinstance(enabled, bool | None):
        raise UserError(f"model.params.dp_config.enabled: {enabled!r} is neither true nor false")
    begun = request.run_dir.resume_from is not None or request.run_dir.statistics.is_file()
    resumed = begun and request.run_dir.privacy_card.exists()
    if resumed and not request.private and is_private_card(request.run_dir.privacy_card):
        raise UserError(
            f"{request.run_dir.path}: is a private run (it has a privacy.json), and dp_config.enabled is off in the "
            "configuration: what is private goes on privately or not at all; type "
            "model.params.dp_config.enabled=true, or start a new run on public data: --base FILE.yaml "
            "model.params.ckpt_path=CHECKPOINT"
        )


def is_private_card(path: Path) -> bool:
    """Whether a ``privacy.json`` belongs to a private run; true also when it cannot be read."""
    from ldm.training.unprotected_run import is_unprotected_card  # late: it imports torch

    try:
        return not is_unprotected_card(read_text(path))
    except (OSError, UserError):
        return True


def check_named_files(request: RunRequest) -> None:
    """Raise UserError for a missing checkpoint that the configuration names."""
    for key, path in (*checkpoint_paths(request.model_params), ("lightning.trainer.ckpt_path", request.resume)):
        if path is None:
            continue
        path = Path(str(path))
        if path.exists():
            if not path.is_dir():
                require_regular(path)
            continue
        folder = path.parent
        hint = nearest(path.name, (p.name for p in folder.iterdir())) if folder.is_dir() else "; no such folder"
        raise UserError(f"{key}: checkpoint '{path}' does not exist{hint}")


def checkpoint_paths(params: Any, where: str = "model.params") -> Iterator[tuple[str, str]]:
    """Every ``ckpt_path`` of a section and its nested sections, with its key."""
    items = params.items() if isinstance(params, Mapping) else enumerate(params) if isinstance(params, list) else ()
    for key, value in items:
        if key == "ckpt_path" and value is not None:
            yield f"{where}.{key}", str(value)
        else:
            yield from checkpoint_paths(value, f"{where}.{key}")
