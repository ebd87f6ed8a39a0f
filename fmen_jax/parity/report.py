"""The result of a comparison, as text and as JSON."""

import dataclasses
import json
import math
from typing import Any

from fmen_jax.parity.layers import Where


@dataclasses.dataclass(frozen=True)
class Row:
    """Comparison of one tensor: a weight, the map of a layer, a gradient, a loss.

    Errors are shares of the range of the reference's values, except where `unit` says otherwise.
    """

    name: str
    error: float
    """Largest difference of the two implementations."""
    bound: float
    """Largest error at which the row is equal."""
    unit: str = 'share of range'
    shape: tuple[int, ...] = ()
    max_abs: float = 0.0
    """Largest absolute difference."""
    where: Where = ()
    """Position of the largest difference: (n, y, x, c) in a map."""
    case: str = ''
    """Input that gave it."""
    ours: float = math.nan
    reference: float = math.nan
    local: float | None = None
    """Error of a layer that was given the input of the reference."""
    noise: float | None = None
    """Root mean square of the reference's own float32 rounding error, as a share of the range."""
    ratio: float | None = None
    """Root mean square of our float32 error, divided by that of the reference, or by 2^-26 of the
    root mean square of its values if that is larger."""
    note: str = ''

    @property
    def equal(self) -> bool:
        """Whether the error is within the bound; a NaN is not."""
        return self.error <= self.bound and (self.local is None or self.local <= self.bound)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One of the six comparisons."""

    name: str
    rows: list[Row]
    faults: list[str] = dataclasses.field(default_factory=list)
    """Differences that are not numbers, such as a missing key."""

    @property
    def equal(self) -> bool:
        """Whether something was compared and all of it is equal."""
        return bool(self.rows) and not self.faults and all(row.equal for row in self.rows)

    @property
    def worst(self) -> Row:
        """The row whose error is the largest compared with its bound."""
        return max(self.rows, key=lambda row: (not row.equal, _excess(row)))


@dataclasses.dataclass(frozen=True)
class Divergence:
    """The first place where the implementations differ, given equal values up to there."""

    layer: str
    side: str
    """'in' if the difference is already in the input of the layer, 'out' if it is in its output."""
    share: float
    case: str
    text: str
    frame: float
    """Largest difference in the outermost pixels of the map, as a share of its range."""
    interior: float
    """Largest difference elsewhere, likewise."""


@dataclasses.dataclass(frozen=True)
class Control:
    """The negative control: a changed weight, which must be found."""

    key: str
    index: Where
    change: float
    found: bool
    text: str


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """Differences of one map, the largest over the channels."""

    layer: str
    case: str
    values: list[list[float]]


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that a comparison found."""

    stages: list[Stage]
    control: Control | None
    divergence: Divergence | None
    hypotheses: list[str]
    heat: HeatMap | None
    facts: dict[str, Any]
    """Versions, devices, precision, hashes and settings."""
    notes: list[str]

    @property
    def equal(self) -> bool:
        """Whether every stage is equal and the control was found."""
        controlled = self.control is not None and self.control.found
        return bool(self.stages) and controlled and all(stage.equal for stage in self.stages)

    @property
    def verdict(self) -> str:
        """One sentence."""
        if not self.stages or self.control is None:
            return 'nothing was compared'
        if failed := [stage.name for stage in self.stages if not stage.equal]:
            return f'different: {", ".join(failed)}'
        if not self.control.found:
            return f'this comparison cannot fail: {self.control.text}'
        return 'equal'

    def stage(self, name: str) -> Stage:
        """Return a stage by its name."""
        return next(stage for stage in self.stages if stage.name == name)

    def json(self) -> str:
        """Return the report as JSON; NaN and infinity are written as strings."""
        tree = {'verdict': self.verdict, 'equal': self.equal, **dataclasses.asdict(self)}
        for stage, entry in zip(self.stages, tree['stages'], strict=True):
            entry['equal'] = stage.equal
        return json.dumps(_plain(tree), indent=1) + '\n'

    def text(self, *, layers: bool = False) -> str:
        """Return the report as text.

        Args:
          layers: whether to list every row; by default only those that differ, and the worst one.
        """
        lines = [f'{name:<12} {value}' for name, value in self.facts.items()]
        lines += [f'note         {note}' for note in self.notes]
        for stage in self.stages:
            worst = f', largest: {_number(stage.worst.error)}' if stage.rows else ''
            verdict = 'equal' if stage.equal else 'DIFFERENT'
            lines.append(f'\n{stage.name}: {verdict} ({len(stage.rows)} compared{worst})')
            lines += [f'  {fault}' for fault in stage.faults]
            shown = stage.rows if layers else [row for row in stage.rows if not row.equal]
            if shown:
                lines += _table(shown if layers else shown[:12], self.divergence)
            if len(shown) > 12 and not layers:
                lines.append(f'  ... {len(shown) - 12} more rows differ; --layers lists them all')
        if self.divergence:
            lines.append(f'\nfirst divergence: {self.divergence.text}')
        lines += [f'hypothesis: {text}' for text in self.hypotheses]
        if self.control:
            lines.append(f'\nnegative control: {self.control.text}')
        lines.append(f'verdict: {self.verdict}')
        return '\n'.join(lines)


def _excess(row: Row) -> float:
    return max(row.error, row.local or 0.0) / (row.bound or 1e-300)


def _number(value: float | None) -> str:
    return '' if value is None else f'{value:.2g}' if 0.01 <= abs(value) < 1000 else f'{value:.1e}'


def _table(rows: list[Row], divergence: Divergence | None) -> list[str]:
    """Return lines with the columns that at least one of the rows fills."""
    columns: dict[str, list[str]] = {
        'name': [row.name or 'output' for row in rows],
        'shape': ['x'.join(map(str, row.shape)) for row in rows],
        'max abs': [_number(row.max_abs) for row in rows],
        'error': [_number(row.error) for row in rows],
        'local': [_number(row.local) for row in rows],
        'noise': [_number(row.noise) for row in rows],
        'ratio': [_number(row.ratio) for row in rows],
        'bound': [_number(row.bound) for row in rows],
        'unit': [row.unit for row in rows],
        'at': [f'{row.case} {row.where}' if row.where else row.case for row in rows],
        'ours': [_value(row.ours) for row in rows],
        'reference': [_value(row.reference) for row in rows],
        '': [
            ' '.join(
                [
                    *([] if row.equal else ['DIFFERS']),
                    *(['<- first'] if divergence and divergence.layer == row.name else []),
                    *([row.note] if row.note else []),
                ]
            )
            for row in rows
        ],
    }
    columns = {title: cells for title, cells in columns.items() if any(cells)}
    widths = [max(len(title), *map(len, cells)) for title, cells in columns.items()]
    table = [list(columns), *zip(*columns.values(), strict=True)]
    return [
        '  ' + '  '.join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]


def _value(value: float) -> str:
    return '' if math.isnan(value) else f'{value:.9g}'


def _plain(tree: Any) -> Any:
    """Return a tree in which JSON can express every number."""
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(value) for value in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return str(tree)
    return tree
