"""Plots of the results of scripts/benchmark.py: one message each, few lines, labels beside them.

The background is transparent, and the colors are legible on white and on dark pages. They are those
of Okabe and Ito, which people with color vision deficiencies can distinguish.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure

Rows = Sequence[dict[str, Any]]

INK = '#808080'
"""Color of text, axes and contenders in the background: legible on white and on black."""
OURS, OTHERS = '#0086d1', ('#d55e00', '#009e73')
SHOWN = ('ours, auto', 'onnxruntime', 'openvino')
"""Contenders of the plot of inference; the table has all of them."""

_STYLE: dict[Any, Any] = {
    'text.color': INK,
    'axes.labelcolor': INK,
    'axes.edgecolor': INK,
    'xtick.color': INK,
    'ytick.color': INK,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.titlelocation': 'left',
    'axes.titlesize': 11,
    'font.size': 10,
}


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draw one PNG for each section of the results that has a plot, and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for section, function in {
        'infer': _infer,
        'train': _train,
        'memory': _memory,
        'growth': _growth,
    }.items():
        if section in results:
            with matplotlib.rc_context(_STYLE):
                figure = matplotlib.figure.Figure(figsize=(7.5, 4), layout='constrained')
                function(figure, results[section]['rows'])
                drawn.append(folder / f'performance_{section}.png')
                figure.savefig(drawn[-1], dpi=150, transparent=True)
    return drawn


def _infer(figure: Any, rows: Rows) -> None:
    """Plot time relative to the fastest PyTorch contender at each size, in float32."""
    axes = figure.subplots()
    rows = [r for r in rows if r['dtype'] == 'float32']
    sizes = list(dict.fromkeys((r['height'], r['width']) for r in rows))
    times = {(r['contender'], r['height'], r['width']): r['seconds'] for r in rows}
    torch = [{key for key in times if key[0].startswith('torch') and key[1:] == s} for s in sizes]
    best = [min(times[key] for key in keys) for keys in torch]
    present = {r['contender'] for r in rows}
    ends = []
    colors = iter(OTHERS)
    for name in (name for name in SHOWN if name in present):
        points = [times[name, *size] / least for size, least in zip(sizes, best, strict=True)]
        color = OURS if name.startswith('ours') else next(colors)
        axes.plot(range(len(sizes)), points, marker='o', color=color, linewidth=2)
        ends.append((points[-1], name, color))
    axes.axhline(1, color=INK, linewidth=1, linestyle='--')
    ends.append((1.0, 'fastest PyTorch variant', INK))
    axes.set_xticks(range(len(sizes)), [f'{w}x{h}' for h, w in sizes])
    axes.set(ylim=(0, None), xlim=(-0.1, len(sizes) - 1 + 0.02), xlabel='LR size')
    axes.set_title('Time for a picture, relative to the fastest PyTorch variant')
    _label_ends(axes, ends)


def _label_ends(axes: Any, ends: list[tuple[float, str, str]]) -> None:
    """Write names beside the right ends of lines, moved apart where they would overlap."""
    gap = 0.06 * axes.get_ylim()[1]
    place = -gap
    for value, name, color in sorted(ends):
        place = max(value, place + gap)
        axes.annotate(
            name,
            (axes.get_xlim()[1], place),
            xytext=(6, 0),
            textcoords='offset points',
            va='center',
            color=color,
            annotation_clip=False,
        )


def _train(figure: Any, rows: Rows) -> None:
    """Plot the seconds of a step at the smallest batch."""
    batch = min(r['batch'] for r in rows)
    values = {r['contender']: r['seconds'] for r in rows if r['batch'] == batch}
    _bars(figure.subplots(), values, '{:.2f}')
    figure.axes[0].set_title(f'Seconds for a train step, batch of {batch}')


def _memory(figure: Any, rows: Rows) -> None:
    """Plot the temporary memory of each program at the smallest size."""
    height = min(r['height'] for r in rows)
    values = {
        f'{r["contender"]}, {r["convolutions"]}': r['temp_bytes'] / 1e6
        for r in rows
        if r['height'] == height
    }
    _bars(figure.subplots(), values, '{:.0f}')
    figure.axes[0].set_title(f'Temporary memory for an output of {height} rows, MB')


def _bars(axes: Any, values: dict[str, float], text: str) -> None:
    """Draw horizontal bars, the smallest first, with their values at the ends."""
    names = sorted(values, key=lambda name: values[name], reverse=True)
    colors = [OURS if name.startswith(('ours', 'FMEN')) else INK for name in names]
    bars = axes.barh(names, [values[name] for name in names], color=colors)
    axes.bar_label(bars, [text.format(values[name]) for name in names], padding=4)
    axes.spines['bottom'].set_visible(False)
    axes.set_xticks([])


def _growth(figure: Any, rows: Rows) -> None:
    """Plot time and temporary bytes per LR pixel against the side of the picture."""
    side = [r for r in rows if r['of'] == 'side']
    sides = [r['value'] for r in side]
    panels = {
        'microseconds_per_pixel': 'Microseconds per LR pixel',
        'temp_bytes_per_pixel': 'Temporary bytes per LR pixel',
    }
    for axes, (key, title) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        axes.plot(sides, [r[key] for r in side], marker='o', color=OURS, linewidth=2)
        axes.set_xscale('log', base=2)
        axes.set_xticks(sides, [str(s) for s in sides])
        axes.set(ylim=(0, None), xlabel='height and width in LR pixels', title=title)
