"""Reading YAML configurations and building the objects they name.

A node ``{target: dotted.name, params: {...}}`` describes one object. Parameters are checked against the constructor
before it is called, so a misspelt key is an error that names the nearest valid one instead of a silent default.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_type_hints

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from ldm.config_paths import find_base, find_config, with_found_paths
from ldm.config_values import fitting_values
from ldm.errors import UserError, nearest
from ldm.files import require_regular_file

logger = logging.getLogger(__name__)

Options = TypeVar("Options")

#: Packages whose names a configuration may use, see :func:`allow_target`.
ALLOWED_PREFIXES: set[str] = {"ldm", "callbacks", "main", "torch", "torchvision", "pytorch_lightning"}

#: Where the names live that old configurations look for in ``main``.
MAIN_ALIASES: dict[str, str] = {
    "main.DataModuleFromConfig": "ldm.data.module.DataModuleFromConfig",
    "main.WrappedDataset": "ldm.data.module.WrappedDataset",
    "main.ImageLogger": "callbacks.image_logger.ImageLogger",
    "main.SetupCallback": "callbacks.setup_callback.SetupCallback",
    "main.CUDACallback": "callbacks.cuda_callback.CUDACallback",
    "main.DPCallback": "callbacks.differential_privacy.DPCallback",
    "main.RankSchedulerCallback": "callbacks.rank_scheduler.RankSchedulerCallback",
}

#: Classes of a package that old configurations of quantising autoencoders name and nobody has to install: ours instead.
TAMING_ALIASES: dict[str, str] = {
    "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator": (
        "ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"
    ),
    "taming.modules.losses.vqperceptual.DummyLoss": "torch.nn.Identity",
    "taming.modules.losses.lpips.LPIPS": "ldm.modules.losses.lpips.LPIPS",
    "taming.modules.vqvae.quantize.VectorQuantizer2": "ldm.modules.vqvae.quantize.VectorQuantizer2",
}

#: Bounds of a configuration file; the largest shipped one has 5 kB, 12 levels and 150 values.
MAX_YAML_BYTES, MAX_YAML_DEPTH, MAX_YAML_VALUES = 2**20, 64, 20_000

#: Classes that newer releases of Lightning no longer have: what does the same there.
LIGHTNING_ALIASES: dict[str, str] = {
    "pytorch_lightning.loggers.TestTubeLogger": "pytorch_lightning.loggers.TensorBoardLogger",
    "pytorch_lightning.loggers.test_tube.TestTubeLogger": "pytorch_lightning.loggers.TensorBoardLogger",
}

_NEVER_USED = "it was stored and never used"

#: Parameters of lineage configurations without a counterpart here: target -> parameter -> why it may go.
#: An entry has no effect once the class accepts a parameter of that name.
RETIRED: dict[str, dict[str, str]] = {
    "ldm.models.diffusion.ddpm.DDPM": {"use_positional_encodings": _NEVER_USED},
    "ldm.models.diffusion.ddpm.LatentDiffusion": {
        "condition_mask": _NEVER_USED,
        "diffusion_mask": _NEVER_USED,
        "use_positional_encodings": _NEVER_USED,
        "clip_denoised": "a latent has no fixed range to clip to",
    },
    "ldm.modules.diffusionmodules.openaimodel.UNetModel": {"use_fp16": "the Trainer's precision decides"},
    "pytorch_lightning.loggers.TensorBoardLogger": {
        "debug": "it was an option of test-tube",
        "create_git_tag": "it was an option of test-tube",
        "description": "it was an option of test-tube",
    },
    "callbacks.image_logger.ImageLogger": {
        "increase_log_steps": "images are made every batch_frequency steps",
        "log_on_batch_idx": "images are counted by logical steps",
        "rescale": "images are always scaled from [-1, 1]",
        "log_images_kwargs": "set 'steps' for the number of sampling steps",
    },
}


def load_config(paths: Sequence[str | Path], dotlist: Sequence[str] = ()) -> DictConfig:
    """Merge YAML files from left to right, then ``key.path=value`` entries; later ones win.

    A file may name others it builds on, ``base: FILE`` or a list of them, relative to its own folder. They are read
    first and the file's own values laid over them. A section that names another ``target`` than the one it is laid
    over takes nothing from it, since parameters belong to their target.

    A relative path in a file is looked for beside that file, then in the working folder, then among the shipped
    configurations and models; the same goes for ``base``.

    Raises:
        UserError: for a missing or broken file, files that build on each other in a circle, an entry without ``=``, or
            values that cannot be merged.
    """
    merged = OmegaConf.create({})
    for path in paths:
        merged = _merge(merged, OmegaConf.create(_with_bases(find_config(path))), f"the values of {path}")
    for entry in dotlist:
        key, separator, _ = entry.partition("=")
        if not separator or not key:
            raise UserError(f"'{entry}' is not a setting; type key.path=value, such as model.params.image_size=32")
        try:
            setting = OmegaConf.from_dotlist([entry])
        except (OmegaConfBaseException, yaml.YAMLError, RecursionError) as error:
            raise UserError(f"cannot read the setting '{entry}': {_one_line(error)}") from None
        merged = _merge(merged, setting, f"'{entry}'")
    return merged


def get_obj_from_str(target: str) -> Any:
    """The object of a dotted name, such as ``ldm.models.autoencoder.AutoencoderKL``.

    Names in ``main``, and those of :data:`TAMING_ALIASES`, resolve to where they live now. From packages other than our
    own only classes are given out.

    Raises:
        UserError: for a name outside the allowed packages, or one that does not exist.
    """
    _check_allowed(target)
    module_name, _, name = canonical_target(target).rpartition(".")
    if target in TAMING_ALIASES:
        logger.info("target '%s': built as our %s.%s", target, module_name, name)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise UserError(f"target '{target}' does not exist: there is no module '{error.name}'") from None
        raise
    if not hasattr(module, name):
        hint = nearest(name, (key for key in vars(module) if not key.startswith("_")))
        raise UserError(f"target '{target}' does not exist: '{module_name}' has no '{name}'{hint}")
    obj = getattr(module, name)
    ours = module_name.partition(".")[0] in ("ldm", "callbacks")
    if not callable(obj) or not _allowed(
        str(getattr(obj, "__module__", ""))
    ):  # what a module merely imports is not its
        raise UserError(f"target '{target}' is not something a configuration may build; name a class")
    if not ours and not inspect.isclass(obj):
        raise UserError(f"target '{target}' is not a class; only classes may be built from '{module_name}'")
    return obj


def instantiate_from_config(config: Mapping[str, Any] | DictConfig, **extra: Any) -> Any:
    """Build the object that ``{target, params}`` describes; ``extra`` arguments win over ``params``.

    Nested configurations arrive at the constructor as plain dicts and lists, with interpolations resolved; their
    owner builds them. Parameters of :data:`RETIRED` are dropped with one warning.

    Raises:
        UserError: for a missing or forbidden target, an unknown or missing parameter, or a value left at ``???``.
    """
    plain = to_plain(config)
    if not isinstance(plain, dict) or not isinstance(plain.get("target"), str):
        raise UserError(f"expected a section with a 'target', got {_brief(plain)}; type target: dotted.name")
    unknown = sorted(set(plain) - {"target", "params"}, key=str)
    if unknown:
        raise UserError(
            f"unknown key '{unknown[0]}' next to target '{plain['target']}'"
            f"{nearest(str(unknown[0]), ('target', 'params'))}; arguments belong under 'params'"
        )
    target = plain["target"]
    params = plain.get("params")
    params = {} if params is None else params
    if not isinstance(params, dict):
        raise UserError(f"'params' of {target} must be a mapping, got {_brief(params)}")
    params = {**params, **extra}
    factory = get_obj_from_str(target)
    return factory(**fitting_values(target, factory, _checked(target, factory, params)))


def allow_target(prefix: str) -> None:
    """Let configurations name objects of one more package, such as ``my_datasets``."""
    ALLOWED_PREFIXES.add(prefix)


def canonical_target(target: str) -> str:
    """The dotted name under which an object lives now; ``main.*`` names and aliases are translated."""
    for aliases in (TAMING_ALIASES, LIGHTNING_ALIASES):
        if target in aliases:
            return aliases[target]
    if target.partition(".")[0] != "main":
        return target
    if target not in MAIN_ALIASES:
        hint = nearest(target, MAIN_ALIASES) or f"; it has {', '.join(sorted(MAIN_ALIASES))}"
        raise UserError(f"target '{target}' does not exist{hint}")
    return MAIN_ALIASES[target]


def to_plain(config: Any, where: str = "") -> Any:
    """Turn OmegaConf containers, also nested in plain ones, into plain dicts and lists, interpolations resolved.

    Raises:
        UserError: for a mandatory value (``???``) that was never set, or an interpolation that leads nowhere.
    """
    if isinstance(config, DictConfig | ListConfig):
        try:
            return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        except MissingMandatoryValue as error:
            raise _unset(str(error.full_key)) from None
        except OmegaConfBaseException as error:
            raise UserError(f"cannot resolve '{error.full_key}' in the configuration: {_one_line(error)}") from None
    if isinstance(config, Mapping):
        return {key: to_plain(value, f"{where}.{key}" if where else str(key)) for key, value in config.items()}
    if isinstance(config, list | tuple):
        items = [to_plain(value, f"{where}[{index}]") for index, value in enumerate(config)]
        return type(config)(items) if type(config) in (list, tuple) else config
    if isinstance(config, str) and config == "???":
        raise _unset(where)
    return config


def read_options(kind: type[Options], raw: Mapping[str, Any], where: str, other_names: Sequence[str] = ()) -> Options:
    """An options dataclass filled from a section of a configuration; values that are not there keep their defaults.

    Strings that spell a number or a truth value are converted, as YAML leaves some of them as text. ``other_names`` are
    suggested for a misspelt key, too.

    Raises:
        UserError: for a key that the dataclass does not have, naming the nearest, or a value of another type.
    """
    try:
        return cast(Options, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), dict(raw))))
    except ConfigKeyError as error:
        known = [*(field.name for field in fields(cast(Any, kind))), *other_names]
        raise UserError(f"{where}.{error.key} is unknown{nearest(str(error.key), known)}") from None
    except OmegaConfBaseException as error:
        name = str(error.full_key).partition(".")[0].partition("[")[0]
        wanted = {type(None), get_type_hints(kind).get(name)}
        wanted |= {part for hint in wanted for part in get_args(hint)}
        is_no = next((words for type_, words in _IS_NO.items() if type_ in wanted), "cannot be read")
        raise UserError(f"{where}.{name}: {_brief(raw.get(name))} {is_no}") from None


#: How a value of another type is refused.
_IS_NO: dict[Any, str] = {
    bool: "is neither true nor false",
    int: "is no whole number",
    float: "is no number",
    str: "is no text",
}


def take_options(kind: type[Options], given: dict[str, Any]) -> Options:
    """The dataclass of the arguments in ``given`` that are its fields; they are taken out of ``given``."""
    names = [field.name for field in fields(cast(Any, kind))]
    return kind(**{name: given.pop(name) for name in names if name in given})


def _checked(target: str, factory: Any, params: dict[str, Any]) -> dict[str, Any]:
    known, required, open_ended = accepted_parameters(factory)
    retired = RETIRED.get(canonical_target(target), {})
    dropped = [name for name in params if name not in known and name in retired]
    if dropped:
        reasons = "; ".join(f"{name} ({retired[name]})" for name in dropped)
        logger.warning("%s no longer takes %s", target, reasons)
    kept = {name: value for name, value in params.items() if name not in dropped}
    if not open_ended:
        for name in kept:
            if name not in known:
                hint = nearest(str(name), known) or f"; it takes {', '.join(sorted(known)) or 'none'}"
                raise UserError(f"{target} has no parameter '{name}'{hint}")
    absent = [name for name in required if name not in kept]
    if absent:
        raise UserError(f"{target} needs the parameter '{absent[0]}'; set it under its 'params'")
    return kept


def accepted_parameters(factory: Any) -> tuple[set[str], list[str], bool]:
    """Names a constructor takes, those it must be given, and whether it takes any name at all.

    A constructor with ``**kwargs`` passes them to the next class of its MRO, so that one's names count as well. A class
    that reads some of them into dataclasses lists these as ``OPTION_GROUPS``: their fields are names, too. Options of
    the classes below that a class decides itself are its ``FIXED_OPTIONS``: it does not take them.
    """
    named, required, open_ended = _accepted(factory)
    named |= {field.name for group in getattr(factory, "OPTION_GROUPS", ()) for field in fields(group)}
    return named - set(getattr(factory, "FIXED_OPTIONS", ())), required, open_ended


def _accepted(factory: Any) -> tuple[set[str], list[str], bool]:
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):
        return set(), [], True
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    required = [p.name for p in parameters if p.name in named and p.default is p.empty]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        return named, required, False
    if not inspect.isclass(factory):
        return named, required, True
    owners = [base for base in factory.__mro__ if "__init__" in vars(base) and base is not object]
    for base in owners[1:]:
        if base.__module__.partition(".")[0] in ("torch", "pytorch_lightning"):
            return named, required, False  # nn.Module and the like take nothing of their own
        below, _, _ = accepted_parameters(base)
        named |= below
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(base).parameters.values()):
            return named, required, False
    return named, required, len(owners) <= 1 or owners[-1].__module__.partition(".")[0] not in ("ldm", "callbacks")


def _with_bases(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a file laid over those of the files that its ``base`` names, as plain mappings."""
    place = Path(os.path.realpath(path))  # Path.resolve fails on a link that leads to itself
    if place in above:
        raise UserError(f"config file '{above[-1]}' names the base '{path}', which builds on it; a circle has no end")
    own = cast("dict[str, Any]", OmegaConf.to_container(_load_yaml(path)))
    bases = own.pop("base", None)
    bases = [bases] if isinstance(bases, str) else bases or []
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"config file '{path}': base must be a file name or a list of them, got {_brief(bases)}")
    below: dict[str, Any] = {}
    for base in bases:
        below = _laid_over(below, _with_bases(find_base(base, path), (*above, place)))
    return cast("dict[str, Any]", _laid_over(below, with_found_paths(own, path)))


def config_layers(path: str | Path) -> list[tuple[Path, dict[str, Any]]]:
    """The files that a configuration consists of, those it builds on first, each with its own values alone."""
    path = find_config(path)
    own = cast("dict[str, Any]", OmegaConf.to_container(_load_yaml(path)))
    bases = own.pop("base", None)
    bases = [bases] if isinstance(bases, str) else bases or []
    return [*(layer for base in bases for layer in config_layers(find_base(base, path))), (path, own)]


def _laid_over(below: Any, own: Any) -> Any:
    if not isinstance(below, dict) or not isinstance(own, dict):
        return own
    if "target" in own and "target" in below and own["target"] != below["target"]:
        return own
    return {**below, **{key: _laid_over(below.get(key), value) for key, value in own.items()}}


def _load_yaml(path: Path) -> DictConfig:
    try:
        if require_regular_file(path) > MAX_YAML_BYTES:
            raise UserError(f"config file '{path}' is larger than {MAX_YAML_BYTES:,} bytes; it is refused")
        text = path.read_text(encoding="utf-8")
        _check_extent(text, path)
        loaded = OmegaConf.create(text) if text.strip() else OmegaConf.create({})
    except FileNotFoundError:
        raise UserError(f"config file '{path}' does not exist{_neighbour(path)}") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"config file '{path}'{line} is not valid YAML: {error.problem or _one_line(error)}") from None
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"cannot read config file '{path}': {_one_line(error)}") from None
    if not isinstance(loaded, DictConfig):
        raise UserError(f"config file '{path}' must hold sections such as 'model:', not a list")
    return loaded


def _check_extent(text: str, path: Path) -> None:
    """Raise UserError for YAML that nests too deep, or whose aliases stand for too many values, before it is built."""
    depth = 0
    sizes: dict[str, int] = {}  # values that an anchor stands for
    total, begun = 0, list[tuple[str | None, int]]()
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in begun):
                line = event.start_mark.line + 1
                raise UserError(f"config file '{path}', line {line}: '*{event.anchor}' stands for what it is a part of")
            total += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            begun.append((event.anchor, total))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
            anchor, before = begun.pop()
            if anchor:
                sizes[anchor] = total - before
        if depth > MAX_YAML_DEPTH or total > MAX_YAML_VALUES:
            what = f"{MAX_YAML_DEPTH} levels deep" if depth > MAX_YAML_DEPTH else f"{MAX_YAML_VALUES:,} values"
            raise UserError(f"config file '{path}', line {event.start_mark.line + 1}: more than {what}; it is refused")


def _neighbour(path: Path) -> str:
    folder = path.parent
    return nearest(path.name, (p.name for p in folder.glob("*.y*ml"))) if folder.is_dir() else "; no such folder"


def _merge(base: DictConfig, other: DictConfig, what: str) -> DictConfig:
    try:
        return cast(DictConfig, OmegaConf.merge(base, other))
    except OmegaConfBaseException as error:
        raise UserError(f"cannot merge {what}: {_one_line(error)}") from None


def _check_allowed(target: str) -> None:
    if not isinstance(target, str) or "." not in target or not all(p.isidentifier() for p in target.split(".")):
        raise UserError(f"'{target}' is not a dotted name; type package.module.Class")
    if not _allowed(target) and target not in TAMING_ALIASES:
        roots = ", ".join(sorted(ALLOWED_PREFIXES))
        hint = nearest(target.partition(".")[0], ALLOWED_PREFIXES)
        raise UserError(f"target '{target}' is not allowed; a configuration may name objects of {roots}{hint}")


def _allowed(name: str) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in ALLOWED_PREFIXES)


def _unset(key: str) -> UserError:
    return UserError(f"'{key}' has no value yet (???); set it in the YAML file or type {key}=VALUE")


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
