"""Load YAML files with size limits, merge them over their base files, and merge them from left to right."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.config.paths import find_base, find_config, with_found_paths
from ldm.config.plain import brief
from ldm.config.spelling import setting_with_spelling, with_spelling
from ldm.errors import UserError, first_line, nearest
from ldm.files import require_regular_file

MAX_YAML_BYTES, MAX_YAML_DEPTH, MAX_YAML_VALUES = 2**20, 64, 20_000


def load_config(paths: Sequence[str | Path], dotlist: Sequence[str] = ()) -> DictConfig:
    """Merge YAML files from left to right, then ``key.path=value`` entries; later values override earlier ones.

    A file may name base files, ``base: FILE`` or a list of them, relative to its own folder. They are read first, and
    the file's own values override theirs. A section with another ``target`` than the base section replaces it
    entirely, because parameters belong to their target.

    A relative path in a file is searched beside that file, then in the working folder, then among the shipped
    configurations and models; the same holds for ``base``.

    Raises:
        UserError: for a missing or invalid file, a cycle of base files, an entry without ``=``, or values that cannot
            be merged.
    """
    merged = OmegaConf.create({})
    for path in paths:
        merged = _merge(merged, OmegaConf.create(_with_bases(find_config(path))), f"the values of {path}")
    for entry in dotlist:
        key, separator, value = entry.partition("=")
        if not separator or not key:
            raise UserError(f"'{entry}' is not a setting; type key.path=value, such as model.params.image_size=32")
        try:
            setting = OmegaConf.from_dotlist([f"{key}={setting_with_spelling(key, value)}"])
        except (OmegaConfBaseException, yaml.YAMLError, RecursionError) as error:
            raise UserError(f"cannot read the setting '{entry}': {first_line(error)}") from None
        merged = _merge(merged, setting, f"'{entry}'")
    return merged


def config_layers(path: str | Path) -> list[tuple[Path, dict[str, Any]]]:
    """The files of a configuration, base files first, each with only its own values."""
    path = find_config(path)
    own = cast("dict[str, Any]", OmegaConf.to_container(_load_yaml(path)))
    bases = own.pop("base", None)
    bases = [bases] if isinstance(bases, str) else bases or []
    return [*(layer for base in bases for layer in config_layers(find_base(base, path))), (path, own)]


def _with_bases(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a file merged over those of its base files, as plain mappings."""
    place = Path(os.path.realpath(path))  # Path.resolve fails for a link to itself
    if place in above:
        raise UserError(f"config file '{above[-1]}' names the base '{path}', which builds on it; a circle has no end")
    own = cast("dict[str, Any]", OmegaConf.to_container(_load_yaml(path)))
    bases = own.pop("base", None)
    bases = [bases] if isinstance(bases, str) else bases or []
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"config file '{path}': base must be a file name or a list of them, got {brief(bases)}")
    below: dict[str, Any] = {}
    for base in bases:
        below = _laid_over(below, _with_bases(find_base(base, path), (*above, place)))
    return cast("dict[str, Any]", _laid_over(below, with_found_paths(own, path)))


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
        text = with_spelling(text, f"config file '{path}'")
        loaded = OmegaConf.create(text) if text.strip() else OmegaConf.create({})
    except FileNotFoundError:
        raise UserError(f"config file '{path}' does not exist{_neighbour(path)}") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"config file '{path}'{line} is not valid YAML: {error.problem or first_line(error)}") from None
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"cannot read config file '{path}': {first_line(error)}") from None
    if not isinstance(loaded, DictConfig):
        raise UserError(f"config file '{path}' must hold sections such as 'model:', not a list")
    return loaded


def _check_extent(text: str, path: Path) -> None:
    """Raise UserError for YAML that is nested too deeply or expands to too many values, before it is built."""
    depth = 0
    sizes: dict[str, int] = {}  # number of values by anchor
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
        raise UserError(f"cannot merge {what}: {first_line(error)}") from None
