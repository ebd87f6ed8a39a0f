"""Plots of the results of scripts/benchmark.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure

Rows = Sequence[dict[str, Any]]


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
            figure = matplotlib.figure.Figure(figsize=(9, 5), layout='constrained')
            function(figure, results[section]['rows'])
            drawn.append(folder / f'performance_{section}.png')
            figure.savefig(drawn[-1], dpi=80)
    return drawn


def _infer(figure: Any, rows: Rows) -> None:
    """Plot time relative to the fastest PyTorch contender at each size."""
    axes = figure.subplots()
    axes.set_prop_cycle(color=matplotlib.colormaps['tab20'].colors)  # pyright: ignore
    sizes = list(dict.fromkeys((r['height'], r['width']) for r in rows))
    best = {
        size: min(
            r['seconds']
            for r in rows
            if (r['height'], r['width']) == size and r['contender'].startswith('torch')
        )
        for size in sizes
    }
    for name in dict.fromkeys(r['contender'] for r in rows):
        points = [
            r['seconds'] / best[r['height'], r['width']] for r in rows if r['contender'] == name
        ]
        style = '-' if name.startswith('ours') else '--'
        axes.plot(range(len(points)), points, style, marker='o', label=name)
    axes.set_xticks(range(len(sizes)), [f'{w}x{h}' for h, w in sizes])
    axes.set(yscale='log', xlabel='LR size', ylabel='time, in units of the best PyTorch')
    axes.axhline(1, color='black', linewidth=0.8)
    axes.grid(alpha=0.3, which='both')
    figure.legend(loc='outside right upper', fontsize=8)


def _train(figure: Any, rows: Rows) -> None:
    """Plot seconds per step and the peak memory of the process."""
    _bars(figure, rows, 'batch', {'seconds': 1, 'process_peak': 1e9}, ['s a step', 'GB, process'])


def _memory(figure: Any, rows: Rows) -> None:
    """Plot the temporary and peak memory of each program."""
    named = [
        {**r, 'contender': f'{r["contender"]}, {r["convolutions"]}', 'size': f'{r["height"]}p'}
        for r in rows
    ]
    _bars(
        figure, named, 'size', {'temp_bytes': 1e6, 'peak_bytes': 1e6}, ['MB temporary', 'MB peak']
    )


def _bars(figure: Any, rows: Rows, by: str, units: dict[str, float], labels: list[str]) -> None:
    groups = list(dict.fromkeys(r[by] for r in rows))
    names = list(dict.fromkeys(r['contender'] for r in rows))
    for axes, (key, unit), label in zip(
        figure.subplots(1, len(units), sharey=True), units.items(), labels, strict=True
    ):
        for place, group in enumerate(groups):
            values = {
                r['contender']: r[key] / unit for r in rows if r[by] == group and r[key] is not None
            }
            heights = [names.index(name) + place * 0.8 / len(groups) for name in values]
            if values:
                axes.barh(heights, list(values.values()), 0.8 / len(groups), label=f'{by} {group}')
        axes.set_yticks([i + 0.2 for i in range(len(names))], names)
        axes.set(xlabel=label)
        axes.grid(alpha=0.3, axis='x')
        axes.legend(fontsize=8)


def _growth(figure: Any, rows: Rows) -> None:
    """Plot time and temporary bytes per LR pixel."""
    for axes, key in zip(
        figure.subplots(1, 2), ('microseconds_per_pixel', 'temp_bytes_per_pixel'), strict=True
    ):
        for kind in dict.fromkeys(r['of'] for r in rows):
            points = [(r['value'], r[key]) for r in rows if r['of'] == kind]
            axes.plot(*zip(*points, strict=True), marker='o', label=kind)
        axes.set(xscale='log', yscale='log', ylabel=key.replace('_', ' '))
        axes.set_xscale('log', base=2)
        axes.grid(alpha=0.3, which='both')
        axes.legend(fontsize=8)
