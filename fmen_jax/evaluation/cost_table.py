"""Comparison of what networks cost: counts from their programs and measurements on this machine."""

import contextlib
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmen_jax.errors import InputError, check_range
from fmen_jax.models.cost import count_cost, ntire_flops
from fmen_jax.models.layers import Params
from fmen_jax.models.protocol import NetworkConfig
from fmen_jax.runtime.compilation import jit
from fmen_jax.runtime.memory import ran_out


@dataclasses.dataclass(frozen=True)
class CostEntry:
    """A network to compare."""

    name: str
    config: NetworkConfig
    variables: Params | None = None
    """Variables of the deploy graph. If None, zeros are used, which cost the same."""
    psnr: float | None = None
    """PSNR in dB, if it was measured."""


@dataclasses.dataclass(frozen=True)
class CostRow:
    """Cost of one network for one LR image."""

    name: str
    size: str
    """Width x height of the LR image, in pixels."""
    parameters: int
    flops: int
    """FLOPs as counted in NTIRE's challenges: see `fmen_jax.models.cost.ntire_flops`."""
    multiply_adds: int
    activations: int
    convolutions: int
    weight_bytes: int
    peak_bytes: int
    """Peak memory of the compiled program in bytes: temporary memory, input, output and weights."""
    milliseconds: float
    """Median time over the rounds, in milliseconds."""
    time_ratio: float
    """Median over rounds of this network's time over the first network's in the same round."""
    memory_ratio: float
    """Peak bytes divided by those of the first network."""
    psnr: float | None


def compare(
    entries: Sequence[CostEntry],
    height: int,
    width: int,
    *,
    rounds: int = 10,
    report: Callable[[], object] | None = None,
) -> list[CostRow]:
    """Compare networks on one LR image of height x width; ratios are relative to the first network.

    After one warm-up run each, the networks run in turn, A B C A B C, so that other load on the
    machine affects all of them alike.

    Raises:
      InputError: If `rounds` is less than 1, or an image of this size does not fit into memory.
    """
    check_range('rounds', rounds, least=1)
    seconds: list[list[float]] = [[] for _ in entries]
    with _memory_for(height, width):
        programs = [_compile(entry, height, width) for entry in entries]
        for run, _ in programs:
            run()
        for _ in range(rounds):
            for (run, _), times in zip(programs, seconds, strict=True):
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
            if report:
                report()
    rows = []
    for entry, (_, peak), times in zip(entries, programs, seconds, strict=True):
        cost = count_cost(entry.config.build('deploy'), height, width, entry.config.n_colors)
        ratios = [t / first for t, first in zip(times, seconds[0], strict=True)]
        rows.append(
            CostRow(
                name=entry.name,
                size=f'{width}x{height}',
                parameters=cost.parameters,
                flops=ntire_flops(entry.config, cost),
                multiply_adds=cost.multiply_adds,
                activations=cost.activations,
                convolutions=cost.convolutions,
                weight_bytes=4 * cost.parameters,
                peak_bytes=peak,
                milliseconds=1000 * statistics.median(times),
                time_ratio=statistics.median(ratios),
                memory_ratio=peak / programs[0][1],
                psnr=entry.psnr,
            )
        )
    return rows


@contextlib.contextmanager
def _memory_for(height: int, width: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not ran_out(error):
            raise
        raise InputError(
            f'{width}x{height} pixels do not fit into memory: choose a smaller size.'
        ) from error


def _compile(entry: CostEntry, height: int, width: int) -> tuple[Callable[[], Any], int]:
    """Return a function that runs the network once, and the peak bytes of its program."""
    shape = (1, height, width, entry.config.n_colors)
    x = 255 * np.random.default_rng(0).random(shape, np.float32)
    module = entry.config.build('deploy')
    variables = entry.variables
    if variables is None:
        like = jax.eval_shape(module.init, jax.random.key(0), x)
        variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    compiled = jit(module.apply).lower(variables, x).compile()
    memory = compiled.memory_analysis()
    peak = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    inputs = jax.device_put((variables, x))
    return (lambda: jax.block_until_ready(compiled(*inputs))), peak


def as_markdown(rows: Sequence[CostRow]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        '| network | LR size | parameters | FLOPs G | activations M | convs | weights MB '
        '| peak memory MiB | time ms | time ratio | memory ratio | PSNR dB |',
        '|---|' + '---|' * 11,
    ]
    for row in rows:
        cells = [
            row.name,
            row.size,
            f'{row.parameters:,}',
            f'{row.flops / 1e9:.2f}',
            f'{row.activations / 1e6:.2f}',
            str(row.convolutions),
            f'{row.weight_bytes / 1e6:.2f}',
            f'{row.peak_bytes / 2**20:.1f}',
            f'{row.milliseconds:.0f}',
            f'{row.time_ratio:.2f}',
            f'{row.memory_ratio:.2f}',
            '-' if row.psnr is None else f'{row.psnr:.2f}',
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def as_json(rows: Sequence[CostRow]) -> str:
    """Return the rows as a JSON list of objects."""
    return json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + '\n'


def draw(rows: Sequence[CostRow], data: str) -> np.ndarray:
    """Plot PSNR against time, with peak memory as the bubble area; return [H, W, 3] uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=120, layout='constrained')
    axes = figure.add_subplot()
    for row in rows:
        assert row.psnr is not None
        mib = row.peak_bytes / 2**20
        area = 20 * mib  # in square points
        axes.scatter(row.milliseconds, row.psnr, s=area, color='#0072b2', alpha=0.4)
        axes.annotate(
            f'{row.name}, {mib:.0f} MiB',
            (row.milliseconds, row.psnr),
            (0, -math.sqrt(area / math.pi) - 3),  # just below the bubble
            textcoords='offset points',
            ha='center',
            va='top',
        )
    axes.spines[['top', 'right']].set_visible(False)
    axes.margins(0.3)
    backend = jax.default_backend().upper()
    axes.set_xlabel(f'time for a {rows[0].size} image, ms ({backend}, float32)')
    axes.set_ylabel(f'PSNR on {data}, dB (luma)')
    axes.set_title('Quality, time and peak memory (area)', loc='left')
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
