"""One HTML page that stands alone: no network, no script; styles, images and charts are inside the file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image
from torch import Tensor

from ldm.evaluation.inputs.images import resize
from ldm.samples import grid

#: Longest side of one image in a report; larger ones are shown smaller.
TILE = 128

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c2330;--soft:#5b6472;--line:#dfe3ea;--panel:#f5f7fa;--mark:#0b63c5;
--good:#0a7d4b;--warn:#8a4b00;--warnbg:#fff4e0;--c0:#0b63c5;--c1:#c2410c;--c2:#0f766e;--c3:#7c3aed;--c4:#a16207;
--c5:#be185d}
@media (prefers-color-scheme:dark){:root{--paper:#12161d;--ink:#e6eaf0;--soft:#9aa5b4;--line:#2c3542;--panel:#1a2029;
--mark:#6db1ff;--good:#4fd19b;--warn:#ffc46b;--warnbg:#33270f;--c0:#6db1ff;--c1:#ff9b6a;--c2:#4fd1c5;--c3:#b79bff;
--c4:#e6c15a;--c5:#ff8fc0}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main{max-width:66rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:2.75rem 0 .75rem;padding-bottom:.3rem;border-bottom:1px solid var(--line)}
h3{font-size:1.02rem;margin:1.25rem 0 .4rem}
.pairs h3{margin-top:.25rem}
tbody th{min-width:7rem}
p{max-width:46rem;margin:.5rem 0}
.lead,.note,figcaption,caption,small{color:var(--soft)}
.note,figcaption,caption,small{font-size:.88rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.75rem;margin:1.5rem 0;padding:0}
.card{background:var(--panel);border:1px solid var(--line);border-radius:.6rem;padding:.8rem 1rem;margin:0}
.card dt{font-size:.82rem;color:var(--soft)}
.card dd{margin:0;font-size:1.55rem;font-weight:600;font-variant-numeric:tabular-nums;line-height:1.3}
.card small{display:block;font-weight:400;line-height:1.35}
.wide{overflow-x:auto;margin:.75rem 0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
caption{text-align:left;padding-bottom:.4rem}
th,td{text-align:left;padding:.42rem .75rem .42rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-size:.85rem;color:var(--soft);font-weight:600}
tbody th{color:var(--ink);font-size:1rem;font-weight:500}
td.number,th.number{text-align:right;white-space:nowrap;padding-right:1.5rem}
details{margin:.75rem 0}
summary{cursor:pointer;color:var(--mark)}
td.best{color:var(--good);font-weight:700}
td{overflow-wrap:break-word}
td:last-child{overflow-wrap:anywhere;min-width:9rem}
figure{margin:.5rem 0}
img{max-width:100%;height:auto;display:block;border-radius:.3rem}
img.sharp{image-rendering:pixelated}
svg{max-width:100%;height:auto;display:block;color:var(--ink)}
svg text{fill:currentColor;font:12px system-ui,sans-serif}
svg .axis{stroke:var(--line);stroke-width:1}
svg .soft{fill:var(--soft)}
.warning{background:var(--warnbg);color:var(--warn);border-left:4px solid var(--warn);padding:.6rem .9rem;
border-radius:.3rem;margin:1rem 0;max-width:none}
.pairs{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr));gap:.5rem 2rem}
code,pre{font:.86rem/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
pre{background:var(--panel);padding:.75rem 1rem;border-radius:.4rem;overflow-x:auto;white-space:pre-wrap}
footer{margin-top:3rem;color:var(--soft);font-size:.85rem}
@media (max-width:40rem){main{padding:1.25rem .9rem 3rem}h1{font-size:1.5rem}.card dd{font-size:1.3rem}}
@media print{.wide{overflow:visible}h2{break-after:avoid}tr,figure{break-inside:avoid}}
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole document around the parts of its body; nothing in it refers to another file."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


class Html(str):
    """Text that is markup already; every other text is escaped."""


def text(value: object) -> str:
    """`value` as markup."""
    return value if isinstance(value, Html) else escape(str(value))


def section(title: str, *parts: str) -> str:
    """A heading and what stands under it; empty when there is nothing."""
    inside = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{inside}\n</section>" if inside else ""


def paragraph(content: object, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{text(content)}</p>"


def cards(entries: Iterable[tuple[str, str, str]]) -> str:
    """Figures that are seen first: (name, value, note)."""
    inside = "".join(
        f'<div class="card"><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>'
        for name, value, note in entries
    )
    return f'<dl class="cards">{inside}</dl>' if inside else ""


def table(
    headers: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    caption: str = "",
    numbers: Sequence[int] = (),
    best: Iterable[tuple[int, int]] = (),
) -> str:
    """A table; columns in `numbers` are set right, cells (row, column) in `best` are marked. Empty without rows."""
    rows, marked = [list(row) for row in rows], set(best)
    if not rows:
        return ""

    def cell(row: int, column: int, value: object) -> str:
        kinds = [kind for kind, here in (("number", column in numbers), ("best", (row, column) in marked)) if here]
        attribute = f' class="{" ".join(kinds)}"' if kinds else ""
        inside = text(value) + (" <small>best</small>" if "best" in kinds else "")
        return f'<th scope="row">{inside}</th>' if column == 0 else f"<td{attribute}>{inside}</td>"

    head = "".join(
        f'<th scope="col"{" class=number" if column in numbers else ""}>{text(header)}</th>'
        for column, header in enumerate(headers)
    )
    body = "\n".join(
        "<tr>" + "".join(cell(at, column, value) for column, value in enumerate(row)) + "</tr>"
        for at, row in enumerate(rows)
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{title}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def facts(entries: Iterable[tuple[str, object]]) -> str:
    """A two-column table of names and values."""
    return table(("", ""), entries).replace('<thead><tr><th scope="col"></th><th scope="col"></th></tr></thead>', "")


def image_tag(image: Image.Image, alt: str, caption: str = "", scale: int = 1) -> str:
    """A figure with the image inside as PNG, shown `scale` times as large where there is room."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    kind = ' class="sharp"' if scale > 1 else ""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><img{kind} src="data:image/png;base64,{data}" alt="{escape(alt)}" '
        f'width="{image.width * scale}" height="{image.height * scale}">{below}</figure>'
    )


def sheet(images: Tensor, columns: int) -> Image.Image:
    """Images (N, 1 or 3, H, W) in [-1, 1] on one image, none larger than `TILE`."""
    side = max(images.shape[-2:])
    if side > TILE:
        images = resize(images.float(), TILE)
    return grid(images, columns)


def strip(images: Tensor, alt: str, columns: int = 10, caption: str = "") -> str:
    """Images on one sheet as a figure; small ones are shown twice as large, with sharp pixels."""
    return image_tag(sheet(images, columns), alt, caption, scale=2 if max(images.shape[-2:]) <= 48 else 1)


def details(title: str, *parts: str) -> str:
    """Parts that open on a click; empty when there is nothing inside."""
    inside = "".join(parts)
    return f"<details><summary>{escape(title)}</summary>{inside}</details>" if inside else ""


def number(value: float | None, digits: int = 4) -> str:
    """A figure for people: four significant digits, thousands marked, a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
