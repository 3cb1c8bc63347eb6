"""Checks of HTML pages that must stand alone: by parsing them, and in a browser where there is one."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

VOID = {"meta", "link", "img", "br", "hr", "rect", "line", "polyline", "circle", "path"}
BROWSERS = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
)


class Page(HTMLParser):
    """A page taken apart: texts, images, and what is wrong with its structure."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.faults: list[str] = []
        self.images: list[Image.Image] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.feed(markup)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self.open]
        self.faults += [f"the style sheet loads {found}" for found in re.findall(r"@import|url\([^)]*\)", markup)]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if len(values) != len(attrs):
            self.faults.append(f"<{tag}> has an attribute twice")
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            if name in values and not str(values[name]).startswith(("data:", "#")):
                self.faults.append(f"<{tag} {name}={values[name]!r}> leads outside")
        if tag in ("script", "iframe", "object", "embed"):
            self.faults.append(f"<{tag}> has no place in a report")
        if tag == "img":
            self._image(values)
        if tag == "svg" and (values.get("role") != "img" or not values.get("aria-label")):
            self.faults.append("a chart without a description")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes something else")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style" and data.strip():
            self.words.append(data.strip())

    def _image(self, values: dict[str, str | None]) -> None:
        if not values.get("alt"):
            self.faults.append("an image without alt text")
        kind, _, data = str(values.get("src")).partition(",")
        if kind != "data:image/png;base64":
            self.faults.append(f"an image is {kind}")
            return
        image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        image.load()
        if image.format != "PNG":
            self.faults.append(f"an image is {image.format}")
        self.images.append(image)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def browser() -> str | None:
    """A headless Chromium: $CHROMIUM, or one on the path."""
    return os.environ.get("CHROMIUM") or next((found for name in BROWSERS if (found := shutil.which(name))), None)


PROBE = """<script>
window.faults=[];window.addEventListener("error",e=>window.faults.push(String(e.message||e.target.src).slice(0,80)),true);
window.addEventListener("load",()=>{const images=[...document.images];
const wide=document.documentElement.scrollWidth>document.documentElement.clientWidth;
document.title=JSON.stringify({faults:window.faults,images:images.length,wide:wide,
broken:images.filter(i=>!i.complete||!i.naturalWidth).length,
loaded:performance.getEntriesByType("resource").filter(e=>!e.name.startsWith("data:")).map(e=>e.name)});});
</script>"""


def rendered(page: Path, folder: Path, width: int = 1000) -> dict:
    """What a browser says of a page: faults, images, broken ones, resources it asked for, and whether it is wider
    than the window."""
    program = browser()
    assert program is not None
    probed = folder / "probed.html"
    probed.write_text(page.read_text(encoding="utf-8").replace("<head>", f"<head>{PROBE}", 1), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--window-size={width},900"]
    flags += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    found = subprocess.run([program, *flags, probed.as_uri()], capture_output=True, text=True, timeout=60, check=False)
    title = re.search(r"<title>(.*?)</title>", found.stdout, re.S)
    assert title is not None, found.stderr[-500:]
    return json.loads(title.group(1).replace("&quot;", '"').replace("&amp;", "&"))
