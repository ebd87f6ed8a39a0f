"""A report as one HTML file that needs no other file and follows the light or dark mode."""

import base64
import dataclasses
import html
from collections.abc import Sequence

from fmen_jax.research.drawing import Drawn


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture with a caption."""

    name: str
    """Name of its PNG file, without the file extension."""
    caption: str
    png: bytes
    pixelated: bool = True
    """Whether to enlarge it by repeating pixels."""


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart with a caption."""

    name: str
    caption: str
    drawn: Drawn

    @property
    def png(self) -> bytes:
        """The chart on white."""
        return self.drawn.png


@dataclasses.dataclass(frozen=True)
class PictureRow:
    """Pictures side by side."""

    title: str
    pictures: Sequence[Picture]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts; its first column is a heading of the row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    summary: str = ''
    """If given, the table is folded behind this line."""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    text: str
    """How to read it: one paragraph."""
    parts: Sequence[PictureRow | Chart | Table]

    def figures(self) -> list[Picture | Chart]:
        """Return all pictures and charts."""
        found: list[Picture | Chart] = []
        for part in self.parts:
            found += part.pictures if isinstance(part, PictureRow) else []
            found += [part] if isinstance(part, Chart) else []
        return found


_STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --card: #f4f4f5; --text: #1b1b1f;
  --quiet: #55565e; --line: #d4d4d8; }
@media (prefers-color-scheme: dark) { :root { --ground: #131417; --card: #1e2026; --text: #ececf0;
  --quiet: #a8aab4; --line: #3b3d46; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 56rem; padding: 1.5rem; background: var(--ground);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .4rem; border-top: 1px solid var(--line);
  padding-top: 1rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { max-width: 46rem; margin: .4rem 0; }
nav { columns: 16rem; margin: 1rem 0; } nav a { display: block; color: inherit; }
.row { display: grid; gap: .75rem; grid-template-columns: repeat(3, 1fr); }
figure { margin: 0; } figcaption { color: var(--quiet); font-size: .875rem; }
img { display: block; width: 100%; height: auto; } img.pixelated { image-rendering: pixelated; }
.chart { background: var(--card); border-radius: .5rem; padding: .75rem; margin: .75rem 0; }
.chart svg { display: block; width: 100%; min-width: 34rem; height: auto; }
.chart div { overflow-x: auto; }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child { text-align: left; } th { font-weight: 600; }
tbody th { font-weight: 400; } summary { cursor: pointer; margin: .75rem 0; }
footer { margin-top: 3rem; color: var(--quiet); font-size: .875rem; overflow-wrap: anywhere; }
"""


def render(title: str, text: str, sections: Sequence[Section], footer: str) -> str:
    """Return the page as HTML. All texts are plain text; pictures are part of the page."""
    links = ''.join(
        f'<a href="#s{i}">{html.escape(section.title)}</a>' for i, section in enumerate(sections)
    )
    body = ''.join(_section(i, section) for i, section in enumerate(sections))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>'
        f'<h1>{html.escape(title)}</h1><p>{html.escape(text)}</p><nav>{links}</nav>\n'
        f'<main>{body}</main><footer>{html.escape(footer)}</footer></body></html>\n'
    )


def _section(number: int, section: Section) -> str:
    parts = ''.join(map(_part, section.parts))
    return (
        f'<section id="s{number}"><h2>{html.escape(section.title)}</h2>'
        f'<p>{html.escape(section.text)}</p>{parts}</section>\n'
    )


def _part(part: PictureRow | Chart | Table) -> str:
    if isinstance(part, PictureRow):
        title = f'<h3>{html.escape(part.title)}</h3>' if part.title else ''
        return f'{title}<div class="row">{"".join(map(_picture, part.pictures))}</div>'
    if isinstance(part, Chart):
        caption = html.escape(part.caption)
        svg = part.drawn.svg.replace('<svg ', f'<svg role="img" aria-label="{caption}" ', 1)
        return f'<figure class="chart"><div>{svg}</div><figcaption>{caption}</figcaption></figure>'
    return _table(part)


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    kind = ' class="pixelated"' if picture.pixelated else ''
    caption = html.escape(picture.caption)
    return (
        f'<figure><img{kind} alt="{caption}" src="data:image/png;base64,{data}">'
        f'<figcaption>{caption}</figcaption></figure>'
    )


def _table(table: Table) -> str:
    def cells(row: Sequence[str], head: bool) -> str:
        kinds = ['th' if head or i == 0 else 'td' for i in range(len(row))]
        scope = {True: ' scope="col"', False: ' scope="row"'}[head]
        return ''.join(
            f'<{kind}{scope if kind == "th" else ""}>{html.escape(text)}</{kind}>'
            for kind, text in zip(kinds, row, strict=True)
        )

    rows = ''.join(f'<tr>{cells(row, False)}</tr>' for row in table.rows)
    drawn = (
        f'<div class="wide"><table><thead><tr>{cells(table.header, True)}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div>'
    )
    if not table.summary:
        return drawn
    return f'<details><summary>{html.escape(table.summary)}</summary>{drawn}</details>'
