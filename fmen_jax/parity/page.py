"""A report as one self-contained HTML page, readable in light and in dark."""

import html
import math

import numpy as np

from fmen_jax.parity.report import HeatMap, Report, Row, Stage

_STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --back: #ffffff; --soft: #656d76;
  --line: #d0d7de; --good: #1a7f37; --bad: #cf222e; --mark: #0969da; --band: #0969da22; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --back: #0d1117; --soft: #8d96a0; --line: #30363d; --good: #3fb950;
    --bad: #f85149; --mark: #4493f8; --band: #4493f833; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 1150px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
.equal { color: var(--good); } .different { color: var(--bad); } .soft { color: var(--soft); }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
td, th { padding: 2px 9px; border-bottom: 1px solid var(--line); text-align: right; }
td:first-child, th:first-child, td.text, th.text { text-align: left; }
tr.different td { font-weight: 600; } .scroll { overflow-x: auto; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; } svg { max-width: 100%; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 1px 1em; font-size: 13px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.pair { display: flex; gap: 3em; flex-wrap: wrap; align-items: start; }
"""

_MOST_CELLS = 128
"""Most rows and columns of the map of differences."""


def as_html(report: Report) -> str:
    """Return the page: verdict, explanations, error by layer, the worst layer, every table."""
    state = 'equal' if report.equal else 'different'
    parts = [f'<h1>Parity: <span class="{state}">{_text(report.verdict)}</span></h1>']
    if report.divergence:
        parts.append(f'<p><b>First divergence</b> {_text(report.divergence.text)}</p>')
    parts += [f'<p><b>Hypothesis</b> {_text(text)}</p>' for text in report.hypotheses]
    if report.control:
        parts.append(f'<p><b>Negative control</b> {_text(report.control.text)}</p>')
    parts += [f'<p class="soft">{_text(note)}</p>' for note in report.notes]
    parts.append(_summary(report.stages))
    forward = next((s for s in report.stages if any(r.local is not None for r in s.rows)), None)
    if forward:
        others = [row for stage in report.stages for row in stage.rows if row.noise is not None]
        parts.append(_chart(forward.rows, {row.name: row.noise or 0.0 for row in others}))
    if report.heat:
        parts.append(_heat(report.heat, report))
    parts += [_table(stage, report) for stage in report.stages]
    facts = ''.join(f'<dt>{_text(k)}</dt><dd>{_text(v)}</dd>' for k, v in report.facts.items())
    parts.append(f'<h2>Versions and settings</h2><dl>{facts}</dl>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>fmen-jax parity</title>'
        f'<style>{_STYLE}</style></head><body>\n' + '\n'.join(parts) + '\n</body></html>\n'
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ''
    return f'{value:.3g}' if value == 0 or 0.01 <= abs(value) < 1e5 else f'{value:.1e}'


def _summary(stages: list[Stage]) -> str:
    rows = []
    for stage in stages:
        state = 'equal' if stage.equal else 'different'
        worst = stage.worst if stage.rows else None
        cells = [
            f'<td>{_text(stage.name)}</td>',
            f'<td class="text {state}">{state}</td><td>{len(stage.rows)}</td>',
            f'<td class="text">{_text((worst.name or "output") if worst else "")}</td>',
            f'<td>{_number(worst.error) if worst else ""}</td>',
            f'<td>{_number(worst.bound) if worst else ""}</td>',
            f'<td class="text">{_text(worst.unit if worst else "")}</td>',
        ]
        rows.append(f'<tr>{"".join(cells)}</tr>')
    return (
        '<table><tr><th>stage</th><th class="text">verdict</th><th>compared</th>'
        '<th class="text">worst</th><th>error</th><th>bound</th><th class="text">unit</th></tr>'
        f'{"".join(rows)}</table>'
    )


def _table(stage: Stage, report: Report) -> str:
    """Return every row of a stage; folded away where all are equal."""
    lines = []
    first = report.divergence.layer if report.divergence else None
    for row in stage.rows:
        mark = '&#9664; first' if stage.rows[0].local is not None and row.name == first else ''
        cells = [
            _text(row.name or 'output'),
            'x'.join(map(str, row.shape)),
            *map(_number, (row.max_abs, row.error, row.local, row.noise, row.ratio, row.bound)),
            f'{_text(row.case)} {_text(row.where or "")}',
            *map(_number, (row.ours, row.reference)),
            f'{mark} {_text(row.note)}',
        ]
        state = 'equal' if row.equal else 'different'
        lines.append(f'<tr class="{state}">' + ''.join(f'<td>{c}</td>' for c in cells) + '</tr>')
    titles = (
        *('name', 'shape', 'max abs', 'error', 'local', 'noise', 'ratio', 'bound'),
        *('at (n, y, x, c)', 'ours', 'reference', ''),
    )
    head = ''.join(f'<th>{title}</th>' for title in titles)
    faults = ''.join(f'<p class="different">{_text(fault)}</p>' for fault in stage.faults)
    return (
        f'<h2>{_text(stage.name)}</h2>{faults}<details{"" if stage.equal else " open"}>'
        f'<summary>{len(stage.rows)} rows</summary><div class="scroll"><table><tr>{head}</tr>'
        f'{"".join(lines)}</table></div></details>'
    )


def _chart(rows: list[Row], noise: dict[str, float]) -> str:
    """Return the error by layer on a log axis; the band is the reference's float32 noise."""
    width, height, left, top = 1100, 300, 60, 10
    values = [v for r in rows for v in (r.error, r.local or 0, noise.get(r.name, 0), r.bound)]
    known = [v for v in values if 0 < v < math.inf]
    low = math.floor(math.log10(min(known, default=1e-16)))
    high = math.ceil(math.log10(max(known, default=1.0))) + 1
    step = (width - left) / max(len(rows), 1)

    def y(value: float) -> float:
        exponent = math.log10(min(max(value, 10.0**low), 10.0**high))
        return top + height * (high - exponent) / (high - low)

    def x(number: int) -> float:
        return left + step * (number + 0.5)

    parts = []
    for exponent in range(low, high + 1, max(1, (high - low) // 8)):
        at = y(10.0**exponent)
        parts.append(
            f'<line x1="{left}" x2="{width}" y1="{at:.1f}" y2="{at:.1f}" stroke="var(--line)"/>'
            f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">1e{exponent}</text>'
        )
    band = [(x(i), y(noise[row.name])) for i, row in enumerate(rows) if noise.get(row.name)]
    if band:
        bottom = f'{band[-1][0]:.1f},{top + height} {band[0][0]:.1f},{top + height}'
        edge = ' '.join(f'{a:.1f},{b:.1f}' for a, b in band)
        parts.append(f'<polygon points="{edge} {bottom}" fill="var(--band)"/>')
    bound = y(rows[0].bound)
    parts.append(
        f'<line x1="{left}" x2="{width}" y1="{bound:.1f}" y2="{bound:.1f}" '
        'stroke="var(--bad)" stroke-dasharray="5 4"/>'
        f'<text x="{width}" y="{bound - 5:.1f}" text-anchor="end">bound</text>'
    )
    for i, row in enumerate(rows):
        color = 'var(--good)' if row.equal else 'var(--bad)'
        title = (
            f'<title>{_text(row.name or "output")}: error {_number(row.error)}, local '
            f'{_number(row.local)}, float32 noise {_number(noise.get(row.name))}</title>'
        )
        place = f'cx="{x(i):.1f}" cy="{y(row.error):.1f}" r="3.5"'
        parts.append(f'<circle {place} fill="{color}">{title}</circle>')
        if row.local is not None:
            parts.append(
                f'<rect x="{x(i) - 4:.1f}" y="{y(row.local) - 1:.1f}" width="8" height="2" '
                f'fill="var(--mark)">{title}</rect>'
            )
    for i in range(0, len(rows), max(1, len(rows) // 18)):
        parts.append(
            f'<text transform="translate({x(i):.1f},{top + height + 14}) rotate(35)">'
            f'{_text(rows[i].name or "output")}</text>'
        )
    return (
        '<h2>Error by layer in float64</h2><p class="soft">In order of execution, as a share of '
        'the range. Dots: as the network runs. Bars: the layer alone, given the input of the '
        'reference. Shaded: below the rounding error of the reference in float32.</p>'
        f'<svg viewBox="0 0 {width + 60} {height + 150}" role="img">{"".join(parts)}</svg>'
    )


def _heat(heat: HeatMap, report: Report) -> str:
    """Return a map of the differences of one layer, and frame against interior."""
    values = np.array(heat.values)
    side = math.ceil(max(values.shape) / _MOST_CELLS)
    for axis, size in enumerate(values.shape):
        values = np.maximum.reduceat(values, range(0, size, side), axis)
    cell, (rows, columns) = 16, values.shape
    largest = values.max() or 1.0
    squares = [
        f'<rect x="{i * cell}" y="{j * cell}" width="{cell}" height="{cell}" fill="var(--bad)" '
        f'fill-opacity="{value / largest:.3f}"><title>({j * side}, {i * side}): {value:.2g}'
        '</title></rect>'
        for (j, i), value in np.ndenumerate(values)
    ]
    inner = [line[1:-1] for line in heat.values[1:-1]]
    interior = max((max(line) for line in inner if line), default=0.0)
    ring = [*heat.values[0], *heat.values[-1], *(v for li in heat.values for v in (li[0], li[-1]))]
    facts = [('frame (outermost pixels)', max(ring)), ('interior', interior)]
    if report.divergence:
        facts += [
            ('frame, given equal inputs', report.divergence.frame),
            ('interior, given equal inputs', report.divergence.interior),
        ]
    table = ''.join(f'<tr><td>{name}</td><td>{_number(value)}</td></tr>' for name, value in facts)
    size = min(columns * cell, 420)
    return (
        f'<h2>Where: {_text(heat.layer or "output")}, input {_text(heat.case)}</h2>'
        '<p class="soft">Largest difference over the channels at each '
        f'{"pixel" if side == 1 else f"square of {side}x{side} pixels"} of the first image.</p>'
        f'<div class="pair"><svg width="{size}" viewBox="0 0 {columns * cell} {rows * cell}">'
        f'<rect width="100%" height="100%" fill="none" stroke="var(--line)"/>{"".join(squares)}'
        f'</svg><table><tr><th>largest difference</th><th>share of range</th></tr>{table}</table>'
        '</div>'
    )
