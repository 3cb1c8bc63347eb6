"""Renders Jinja templates to self-contained HTML documents, and the filters that they use."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ldm.numbers import rounded_down, rounded_up

TEMPLATES = Path(__file__).parent / "templates"
ARROWS = {"lower": "↓", "higher": "↑"}
#: An absolute path inside a longer text; the last group is its last part.
_PATH = re.compile(r"(?<![\w.:/\\~})-])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\:;,'\"<>|()]+[/\\])+([^\s/\\:;,'\"<>|()]*)")


def hide_folders(text: str) -> str:
    """The text with absolute paths cut to their last part, so that a page shows no folders of a machine."""
    name, separator, rest = text.partition(" size:")
    if name.startswith(("/", "~/")) and " /" not in name:
        text = (PurePosixPath(name).name or "...") + separator + rest
    elif re.match(r"[A-Za-z]:[\\/]", name):
        text = (PureWindowsPath(name).name or "...") + separator + rest
    return _PATH.sub(lambda found: found.group(1) or "...", text)


def number(value: float | None, digits: int = 4) -> str:
    """A number as text: four significant digits, thousands separators, a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def spent(value: float | str | None, digits: int = 4) -> str:
    """An epsilon or a delta as text, never below its value; a word such as "infinite" stays, None is a dash."""
    if value is None:
        return number(value)
    return value if isinstance(value, str) else rounded_up(value, digits)


def spent_delta(value: float | str | None) -> str:
    """A delta as text with as many digits as on a privacy card, never below its value."""
    return spent(value, 6)


def proved(value: float | str | None) -> str:
    """A lower bound of epsilon as text, never above its value; a word such as "infinite" stays, None is a dash."""
    if value is None:
        return number(value)
    return value if isinstance(value, str) else rounded_down(value)


def percent(value: float) -> str:
    """A share from 0 to 1 as percent."""
    return f"{100 * value:.1f} %"


def direction(better: str) -> str:
    """The better direction of a score, on one line."""
    return f"{better}\N{NO-BREAK SPACE}{ARROWS[better]}"


#: Keys whose words say too little.
WORDS = {
    "add_or_remove_one": "one record more or less",
    "replace_one": "one record exchanged for another",
    "downstream": "accuracy of classifiers trained on the samples",
}


def words(name: str) -> str:
    """A key of a file, or the label of a score, as words."""
    return WORDS.get(name, name.replace("_", " ").replace("Frechet", "Fréchet"))


def in_words(statement: str) -> str:
    """The statement of a privacy card with its neighbouring relation in words."""
    for key in ("add_or_remove_one", "replace_one"):
        statement = statement.replace(key, WORDS[key])
    return statement


def flat_rows(values: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Nested mappings as one list of (name, value as text)."""
    return [(words(key), plain(value)) for key, value in _flat(values)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key} ")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def plain(value: Any) -> object:
    """A value of a file as text; a list of records becomes preformatted JSON."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == "":
        return "none"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        if all(not isinstance(entry, Mapping | list | tuple) for entry in value):
            return ", ".join(map(str, value)) or "none"
        return Markup("<pre>{}</pre>").format(hide_folders(json.dumps(list(value), indent=1, default=str)))
    return value


def _finalize(value: Any) -> Any:
    """Hide folders in every text of a page; markup comes from a template and has been through this already."""
    return hide_folders(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (number, percent, direction, words, in_words, flat_rows, plain)
    environment.filters.update({function.__name__: function for function in filters})
    return environment


ENVIRONMENT = _environment()


def render(template: str, **values: Any) -> Markup:
    """Render a template of this package. The result is markup, so that another template may include it."""
    return Markup(ENVIRONMENT.get_template(template).render(**values))
