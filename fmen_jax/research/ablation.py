"""Ablations: variants of a network over several seeds, in one table with confidence intervals.

Single runs of the same network differ by 0.01 to 0.1 dB, which is as much as many published
ablations report. All variants are therefore trained with the same seeds on the same batches, and
the table gives the mean of the differences to the first variant, seed by seed.
"""

import csv
import dataclasses
import io
import json
import math
import runpy
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fmen_jax.errors import InputError, check_range
from fmen_jax.evaluation import cost_table
from fmen_jax.files import write_text
from fmen_jax.models.cost import count_cost
from fmen_jax.research import drawing
from fmen_jax.research.live_maps import live_feature_maps
from fmen_jax.research.sweep import make_members, sweep
from fmen_jax.training.experiment import Experiment
from fmen_jax.training.loop import DivergedError
from fmen_jax.training.optimizer import make_optimizer
from fmen_jax.training.validation import MakeUpscaler

Variants = Callable[[Experiment], Mapping[str, Experiment]]
"""Function that makes the variants of an ablation by name, the baseline first, from settings."""


@dataclasses.dataclass(frozen=True)
class AblationRow:
    """One variant of an ablation. Costs are those of the deploy graph."""

    name: str
    parameters: int
    """Number of parameters of the deploy graph."""
    train_parameters: int
    """Number of parameters of the train graph."""
    multiply_adds: int
    live_maps: float
    """Peak memory in feature maps, see `live_feature_maps`."""
    peak_bytes: int
    """Peak memory of the compiled program, see `cost_table.CostRow`."""
    time_ratio: float
    """Median of the time divided by that of the first variant in the same round."""
    psnr: dict[int, float]
    """Validation PSNR in dB by seed, without members that diverged."""
    mean: float | None
    """Mean of the PSNR in dB."""
    deviation: float | None
    """Standard deviation of the PSNR over the seeds in dB, with n - 1; None for one seed."""
    difference: float | None
    """Mean of the differences in dB to the first variant, seed by seed."""
    interval: tuple[float, float] | None
    """95 % confidence interval of this mean; None with fewer than two pairs."""
    diverged: int
    """Number of seeds whose training diverged."""


def with_model(experiment: Experiment, **changes: Any) -> Experiment:
    """Return an experiment with other fields of its network, and the train graph that suits it.

    This is the 'collapsed' graph unless that would freeze the statistics of batch norms.
    """
    model: Any = experiment.model
    model = dataclasses.replace(model, **changes)
    graph = 'expanded' if model.freezes_statistics else 'collapsed'
    return dataclasses.replace(experiment, model=model, graph=graph)


def load_ablation(path: Path) -> tuple[Experiment, Variants]:
    """Return `experiment` and `variants` of a Python file.

    Raises:
      InputError: If the file does not exist or lacks one of them.
    """
    if not path.is_file():
        raise InputError(f'{path}: no such file; expected an ablation, such as those in configs.')
    found: dict[str, Any] = runpy.run_path(str(path))
    experiment: Any = found.get('experiment')
    variants: Any = found.get('variants')
    if not isinstance(experiment, Experiment) or not callable(variants):
        raise InputError(
            f'{path}: expected a variable `experiment` of type Experiment and a function '
            '`variants(experiment)` in it, which returns experiments by name.'
        )
    made: Any = variants
    return experiment, made


def ablate(
    variants: Mapping[str, Experiment],
    seeds: Sequence[int],
    workdir: Path,
    *,
    upscaler: MakeUpscaler,
    size: tuple[int, int] = (180, 320),
    rounds: int = 10,
    report: Callable[[str, dict[str, Any]], object] = lambda *_: None,
) -> list[AblationRow] | None:
    """Train all variants with all seeds, or resume, and return one row for each variant.

    Args:
      variants: settings by name; the first one is the baseline.
      seeds: seeds for the initial weights, the same for all variants.
      workdir: folder in which each variant has a sweep, in a folder of its name.
      upscaler: function that makes an upscaler of 8-bit images from a folded network.
      size: height and width in LR pixels at which costs are counted and measured.
      rounds: number of times that each variant runs for its time.
      report: function that is called with 'variant/member' and each log record.

    Returns:
      The rows, or None if SIGTERM or Ctrl-C ended the ablation early; the same call resumes it.

    Raises:
      InputError: If the settings are invalid, or the variants do not share their data.
    """
    _check(variants)
    check_range('rounds', rounds, least=1)
    for experiment in variants.values():
        check_range('size', min(size), least=experiment.model.min_size)
    psnr: dict[str, dict[int, float]] = {}
    for name, experiment in variants.items():
        members = make_members(experiment, seeds)
        try:
            results = sweep(
                members,
                workdir / name,
                upscaler=upscaler,
                report=lambda member, record, name=name: report(f'{name}/{member}', record),
            )
        except DivergedError:
            results = []
        if results is None:
            return None
        psnr[name] = {r.seed: r.psnr for r in results if r.psnr is not None}
    return _rows(variants, seeds, psnr, size, rounds)


def _check(variants: Mapping[str, Experiment]) -> None:
    if not variants:
        raise InputError('the ablation has no variants.')
    first = next(iter(variants.values()))
    if not first.data.validation:
        raise InputError('data.validation is empty: name benchmark folders, which PSNR needs.')
    for name, e in variants.items():
        if '/' in name or name in ('', '.', '..'):
            raise InputError(f'{name!r} cannot be the name of a variant: it names a folder.')
        make_optimizer(e.optim, e.loop.steps)  # checks the settings
        if (e.data, e.pipeline, e.loop.steps, e.model.scale) != (
            first.data,
            first.pipeline,
            first.loop.steps,
            first.model.scale,
        ):
            raise InputError(
                f'the variant {name} differs from the first one in its data, pipeline, steps or '
                'scale, so that they would not see the same batches.'
            )


def _rows(
    variants: Mapping[str, Experiment],
    seeds: Sequence[int],
    psnr: Mapping[str, Mapping[int, float]],
    size: tuple[int, int],
    rounds: int,
) -> list[AblationRow]:
    entries = [cost_table.CostEntry(name, e.model) for name, e in variants.items()]
    costs = cost_table.compare(entries, *size, rounds=rounds)
    baseline = psnr[next(iter(variants))]
    rows = []
    for cost, (name, e) in zip(costs, variants.items(), strict=True):
        model: Any = e.model
        found = dict(psnr[name])
        values = [*found.values()]
        pairs = [found[seed] - baseline[seed] for seed in found if seed in baseline]
        is_first = name == next(iter(variants))
        rows.append(
            AblationRow(
                name=name,
                parameters=cost.parameters,
                train_parameters=count_cost(model.build('expanded'), 32, 32).parameters,
                multiply_adds=cost.multiply_adds,
                live_maps=live_feature_maps(model.build('deploy'), *size, model.n_feats),
                peak_bytes=cost.peak_bytes,
                time_ratio=cost.time_ratio,
                psnr=found,
                mean=statistics.mean(values) if values else None,
                deviation=statistics.stdev(values) if len(values) > 1 else None,
                difference=statistics.mean(pairs) if pairs and not is_first else None,
                interval=None if is_first else confidence_interval(pairs),
                diverged=len(seeds) - len(found),
            )
        )
    return rows


def confidence_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Return the confidence interval of a mean by Student's t; None with fewer than two values."""
    from scipy import stats

    if len(values) < 2:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * error
    mean = statistics.mean(values)
    return mean - half, mean + half


def as_markdown(rows: Sequence[AblationRow]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        '| variant | parameters | in training | multiply-adds G | live maps | peak MiB '
        '| time ratio | PSNR dB | deviation | difference dB | 95 % interval | diverged |',
        '|---|' + '---|' * 11,
    ]

    def number(value: float | None, form: str) -> str:
        return '-' if value is None else format(value, form)

    for row in rows:
        interval = '-'
        if row.interval:
            interval = f'{row.interval[0]:+.3f} to {row.interval[1]:+.3f}'
        cells = [
            row.name,
            f'{row.parameters:,}',
            f'{row.train_parameters:,}',
            f'{row.multiply_adds / 1e9:.3f}',
            f'{row.live_maps:.2f}',
            f'{row.peak_bytes / 2**20:.1f}',
            f'{row.time_ratio:.2f}',
            number(row.mean, '.3f'),
            number(row.deviation, '.3f'),
            number(row.difference, '+.3f'),
            interval,
            f'{row.diverged} of {row.diverged + len(row.psnr)}',
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def as_json(rows: Sequence[AblationRow]) -> str:
    """Return the rows as a JSON list of objects."""
    return json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + '\n'


def as_csv(rows: Sequence[AblationRow]) -> str:
    """Return the rows as CSV; the PSNR of each seed has a column of its own."""
    seeds = sorted({seed for row in rows for seed in row.psnr})
    table = []
    for row in rows:
        cells = dataclasses.asdict(row)
        psnr, interval = cells.pop('psnr'), cells.pop('interval') or (None, None)
        cells |= {'interval_low': interval[0], 'interval_high': interval[1]}
        table.append(cells | {f'psnr_seed{seed}': psnr.get(seed) for seed in seeds})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def draw(rows: Sequence[AblationRow], title: str) -> bytes:
    """Plot the PSNR of all seeds with mean and deviation, and the differences with intervals.

    Returns a PNG with a transparent background. Needs matplotlib.
    """

    def plot(figure: Any) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        for y, row in enumerate(rows):
            left.plot([*row.psnr.values()], [y] * len(row.psnr), '.', color=drawing.INK)
            if row.mean is not None:
                left.errorbar(
                    row.mean, y, xerr=row.deviation, fmt='o', color=drawing.OURS, capsize=3
                )
            if row.difference is not None:
                half = (row.interval[1] - row.difference) if row.interval else None
                right.errorbar(
                    row.difference, y, xerr=half, fmt='o', color=drawing.THEIRS, capsize=3
                )
        right.axvline(0, color=drawing.INK, linewidth=1)
        left.set_yticks(range(len(rows)), [row.name for row in rows])
        left.invert_yaxis()
        left.set_xlabel('PSNR, dB: seeds, mean, standard deviation')
        right.set_xlabel(f'difference to {rows[0].name}, dB: mean, 95 % interval')
        figure.suptitle(title)

    return drawing.transparent_png(plot, 9, 1.2 + 0.45 * len(rows))


def write_results(rows: Sequence[AblationRow], workdir: Path) -> None:
    """Write ablation.md, ablation.csv and ablation.json to `workdir`."""
    for extension, text in (
        ('md', as_markdown(rows)),
        ('csv', as_csv(rows)),
        ('json', as_json(rows)),
    ):
        write_text(workdir / f'ablation.{extension}', text)
