"""The frame of every page and its parts: a page is one HTML file that needs no other file, no
network and no script.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

from cqlray.config.secrets import printable

# The content security policy forbids loading anything but the figures, which are in the file, so that
# a page can be mailed and opened without worry.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """:root { color-scheme: light dark; --ink: #1c1f23; --soft: #5b636e; --line: #dfe3e8; --page: #fbfcfd; --card: #fff;
  --accent: #0072b2; --warn: #fff3d6; --warn-ink: #5c4300 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --soft: #a0a8b2; --line: #363c44; --page: #15181b;
  --card: #1d2125; --accent: #56b4e9; --warn: #453712; --warn-ink: #ffe6a8 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem }
p { margin: .5rem 0; max-width: 46rem; overflow-wrap: anywhere }
.soft, figcaption { color: var(--soft); font-size: .875rem }
.lead { font-size: 1.1rem }
.warn { background: var(--warn); color: var(--warn-ink); padding: .75rem 1rem; border-radius: .5rem; margin: 1rem 0 }
.scroll { overflow: auto; max-height: 36rem; border: 1px solid var(--line); border-radius: .5rem; background: var(--card);
  margin: .75rem 0; width: fit-content; max-width: 100% }
.wide { max-height: none }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .4rem .9rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--line) }
thead th { border-top: 0; color: var(--soft); font-weight: 500; position: sticky; top: 0; background: var(--card) }
th { vertical-align: bottom }
th:first-child, td:first-child, .text { text-align: left }
tr.strong td { font-weight: 600 }
@media (max-width: 34rem) { table { font-size: .85rem } th, td { padding: .4rem .4rem }
  th, td:first-child, .text { white-space: normal } td.text { min-width: 5.5rem }
  .names td:first-child { min-width: 7.5rem } }
.figures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)) }
figure { margin: 0 }
figure img { display: block; width: 100%; height: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; padding: .5rem }
figcaption { margin: .4rem .1rem 0 }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .75rem 1rem;
  font-size: .85rem; line-height: 1.45; margin: .5rem 0 }
code { font-size: .9em }
summary { cursor: pointer; color: var(--accent) }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A page made of parts in HTML; empty parts are left out."""
    return _PAGE.format(
        title=escape(title), style=_STYLE, body="\n".join(part for part in parts if part)
    )


def section(title: str, *parts: str) -> str:
    """A section with a heading and parts in HTML; empty where all parts are."""
    kept = [part for part in parts if part]
    return "\n".join([f"<h2>{escape(title)}</h2>", *kept]) if kept else ""


def paragraph(text: str, kind: str = "") -> str:
    """Text as a paragraph; `kind` is its CSS class: soft, lead or warn."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    strong: int | None = None,
    kind: str = "scroll",
    text: int = 1,
) -> str:
    """A table in a box that scrolls. The row at index `strong` is bold; the first `text` columns
    hold text, the others numbers.
    """
    sides = [' class="text"' if 0 < column < text else "" for column in range(len(head))]
    first = "".join(
        f'<th scope="col"{side}>{escape(cell)}</th>' for cell, side in zip(head, sides, strict=True)
    )
    body = "\n".join(
        f"<tr{' class=strong' if index == strong else ''}>"
        f"{''.join(f'<td{side}>{escape(cell)}</td>' for cell, side in zip(row, sides, strict=True))}</tr>"
        for index, row in enumerate(rows)
    )
    return f'<div class="{kind}" tabindex="0"><table><thead><tr>{first}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def folded(title: str, content: str) -> str:
    """Content that is shown when its title is clicked, without a script."""
    return f"<details><summary>{escape(title)}</summary>\n{content}\n</details>"


def figures(*drawn: str) -> str:
    """Figures side by side where there is room; empty where there is no figure."""
    kept = [figure for figure in drawn if figure]
    return f'<div class="figures">\n{"".join(kept)}</div>' if kept else ""


def figure(svg: str, alt: str, caption: str) -> str:
    """A figure as a separate image, so that its ids and styles cannot affect the page."""
    data = base64.b64encode(svg.encode()).decode()
    image = f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>\n"


def escape(text: object) -> str:
    """Text with HTML's special characters escaped, so that users' text is never markup."""
    return html.escape(printable(str(text)))
