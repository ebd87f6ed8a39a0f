"""Arrays as pictures, and charts that are readable on light and on dark pages.

Pictures are [H, W, 3] uint8. Charts need matplotlib.
"""

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

# Black, orange, white, as in Fig. 8 of the FMEN paper; ordered in lightness, so it survives any
# color blindness and a gray printer.
_STOPS = np.array([[0, 0, 0], [255, 140, 0], [255, 255, 255]], float)

# Two hues that differ for every kind of color blindness, of a lightness that shows on white and on
# near black. The third series has the color of the text.
OURS, THEIRS = '#d55e00', '#3a8fd0'
_TEXT = '#010203'  # a color that nothing else has: it becomes that of the page's text


def heat(values: np.ndarray) -> np.ndarray:
    """Return a map of values in 0..1 as a picture from black over orange to white.

    Values outside are clamped; NaN is black.
    """
    clamped = np.nan_to_num(values).clip(0, 1)
    channels = [np.interp(clamped, [0, 0.5, 1], stops) for stops in _STOPS.T]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def log_scale(values: np.ndarray, decades: float = 5) -> np.ndarray:
    """Return non-negative values on a logarithmic scale: the largest is 1, 10^-decades of it 0."""
    largest = max(float(values.max()), np.finfo(float).tiny)
    return (1 + np.log10(np.maximum(values / largest, 10.0**-decades)) / decades).clip(0, 1)


def overlay(picture: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return a darkened gray picture [H, W, 3] with a map of values in 0..1, [H, W], over it."""
    gray = picture.mean(2, keepdims=True) * 0.6
    strength = np.sqrt(values.clip(0, 1))[..., None]
    mixed = gray * (1 - strength) + heat(values**0.5) * strength
    return np.rint(mixed).astype(np.uint8)


def enlarge(picture: np.ndarray, factor: int) -> np.ndarray:
    """Return a picture with every pixel repeated."""
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def outlined(picture: np.ndarray, row: int, column: int, side: int) -> np.ndarray:
    """Return a picture with a square framed in white inside black, which shows on any ground."""
    drawn = picture.copy()
    for away, color in ((2, 0), (1, 255)):
        low = np.maximum([row - away, column - away], 0)
        high = np.minimum([row + side + away, column + side + away], drawn.shape[:2]) - 1
        drawn[low[0] : high[0] + 1, [low[1], high[1]]] = color
        drawn[[low[0], high[0]], low[1] : high[1] + 1] = color
    return drawn


def encode_png(picture: np.ndarray) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, 'PNG', optimize=True)
    return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A chart in both forms."""

    svg: str
    """SVG element whose text and axes have the color of the surrounding text."""
    png: bytes
    """The same on white."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One series of a chart of lines."""

    y: np.ndarray
    color: str
    style: str = '-'


TEXT_COLOR = _TEXT
"""Color for a series that is drawn like the text."""


INK = '#808080'
"""Color of text and axes that is legible on white and on black."""


def _style(ink: str) -> Any:
    return {
        'svg.fonttype': 'none',
        'svg.hashsalt': 'fmen_jax',  # the same chart is the same file
        'font.size': 10,
        **dict.fromkeys(
            ('text.color', 'axes.edgecolor', 'axes.labelcolor', 'xtick.color', 'ytick.color'), ink
        ),
        **dict.fromkeys(('axes.spines.top', 'axes.spines.right'), False),
    }


def transparent_png(draw: Callable[[Any], None], width: float, height: float) -> bytes:
    """Return a figure as a PNG that is readable on light and on dark pages.

    Args:
      draw: function that draws on a figure of matplotlib; text and axes are gray.
      width: width in inches, at 150 pixels each.
      height: height in inches.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_style(INK)):
        figure = Figure(figsize=(width, height), layout='constrained')
        draw(figure)
        pixels = io.BytesIO()
        figure.savefig(pixels, format='png', dpi=150, transparent=True)
    return pixels.getvalue()


def _render(draw: Callable[[Any], None], width: float, height: float) -> Drawn:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_style(_TEXT)):
        figure = Figure(figsize=(width, height), layout='constrained')
        axes = figure.subplots()
        draw(axes)
        vector, pixels = io.StringIO(), io.BytesIO()
        figure.savefig(vector, format='svg', transparent=True, metadata={'Date': None})
        figure.savefig(pixels, format='png', dpi=110, facecolor='white')
    text = vector.getvalue()
    return Drawn(text[text.index('<svg') :].replace(_TEXT, 'currentColor'), pixels.getvalue())


def lines(
    x: np.ndarray,
    series: Mapping[str, Line],
    *,
    xlabel: str,
    ylabel: str,
    marks: Mapping[str, float] | None = None,
) -> Drawn:
    """Draw series over x, each with its name at its end, and named vertical lines."""

    def draw(axes: Any) -> None:
        for line in series.values():
            axes.plot(x, line.y, line.style, color=line.color, linewidth=2)
        axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, x[-1]))
        axes.grid(alpha=0.25, color=INK)
        low, high = axes.get_ylim()
        ends = {name: float(line.y[np.isfinite(line.y)][-1]) for name, line in series.items()}
        for name, y in _apart(ends, 0.06 * (high - low)).items():
            axes.annotate(
                name, (x[-1], y), (6, 0), textcoords='offset points', va='center',
                color=series[name].color,
            )  # fmt: skip
        for name, place in (marks or {}).items():
            axes.axvline(place, color=INK, linestyle=':')
            axes.annotate(
                name, (place, high), (4, -2), textcoords='offset points', va='top', fontsize=9
            )
        axes.set_ylim(low, high)

    return _render(draw, 7.5, 3.8)


def _apart(places: Mapping[str, float], gap: float) -> dict[str, float]:
    """Return the places moved up where one would lie closer than `gap` to the one below."""
    moved: dict[str, float] = {}
    last = -np.inf
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        last = max(place, last + gap)
        moved[name] = last
    return moved


def bars(values: Mapping[str, float], *, xlabel: str, unit: str) -> Drawn:
    """Draw one horizontal bar for each value, with its number beside it; those below 0 are blue."""

    def draw(axes: Any) -> None:
        numbers = list(values.values())
        colors = [OURS if value >= 0 else THEIRS for value in numbers]
        drawn = axes.barh(range(len(numbers)), numbers, color=colors, height=0.7)
        axes.bar_label(drawn, [f'{value:+.2f}{unit}' for value in numbers], padding=3, fontsize=9)
        _name_rows(axes, list(values))
        axes.axvline(0, color=INK, linewidth=1)
        axes.set(xlabel=xlabel)
        axes.margins(x=0.18)

    return _render(draw, 7.5, 0.8 + 0.26 * max(len(values), 3))


def ranges(
    rows: Mapping[str, tuple[float, float, float]], *, xlabel: str, scale: str = 'log'
) -> Drawn:
    """Draw a line from the first to the last of three values for each row, and a dot at the second.

    The numbers of the ends stand beside them. `scale` is a scale of matplotlib.
    """

    def draw(axes: Any) -> None:
        for place, (low, middle, high) in enumerate(rows.values()):
            axes.plot([low, high], [place, place], color=THEIRS, linewidth=3, alpha=0.7)
            axes.plot([middle], [place], 'o', color=OURS, markersize=5)
            for value, shift, side in ((low, -5, 'right'), (high, 5, 'left')):
                axes.annotate(
                    f'{value:.3g}', (value, place), (shift, 0), textcoords='offset points',
                    va='center', ha=side, fontsize=8,
                )  # fmt: skip
        _name_rows(axes, list(rows))
        axes.set(xlabel=xlabel, xscale=scale)
        axes.grid(alpha=0.25, color=INK, axis='x')
        axes.margins(x=0.16)

    return _render(draw, 7.5, 0.8 + 0.24 * max(len(rows), 3))


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
