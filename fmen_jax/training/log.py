"""The log of a run, which process 0 writes as JSON lines, to TensorBoard and to a callback."""

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorboardX

from fmen_jax.errors import FMENWarning
from fmen_jax.files import write_text
from fmen_jax.images.write import write_rgb8

Report = Callable[[dict[str, Any]], object]
"""Function that is called with every log record."""


class Log:
    """Writes `metrics.jsonl`, `tensorboard/` and `pictures/` in a workdir.

    When a run is resumed from the checkpoint of step `start`, later records are discarded.
    """

    def __init__(self, workdir: Path, start: int, report: Report | None) -> None:
        self._path = workdir / 'metrics.jsonl'
        self._report = report
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        if self._path.exists():
            lines = self._path.read_text(encoding='utf-8').splitlines()
            valid = [line for line in lines if _step_of(line) <= start]
            write_text(self._path, ''.join(f'{line}\n' for line in valid))
        folder = str(workdir / 'tensorboard')
        self._board = tensorboardX.SummaryWriter(folder, purge_step=start + 1)

    def record(self, step: int, **values: Any) -> None:
        """Write the values of a step; each value in a dict becomes a curve of its own."""
        if not self._writes:
            return
        with self._path.open('a', encoding='utf-8') as file:
            file.write(json.dumps({'step': step, **values}) + '\n')
        for name, value in values.items():
            curves = value if isinstance(value, dict) else {'': value}
            for part, number in curves.items():
                if isinstance(number, str):  # TensorBoard's curves are of numbers
                    continue
                self._board.add_scalar(f'{name}/{part}'.rstrip('/'), number, step)
        if self._report:
            self._report({'step': step, **values})

    def find(self, step: int, name: str) -> Any:
        """Return the recorded value of a name in a step; None if there is none."""
        if not self._path.exists():
            return None
        records = map(json.loads, self._path.read_text(encoding='utf-8').splitlines())
        return next((r[name] for r in records if r['step'] == step and name in r), None)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Write an image [H, W, 3] uint8 to TensorBoard, and its latest version to pictures/."""
        if self._writes:
            path = self._path.parent / 'pictures' / f'{name}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            write_rgb8(path, pixels)
            self._board.add_image(name, pixels, step, dataformats='HWC')

    def close(self) -> None:
        """Write pending TensorBoard events and close the file; warn if that fails."""
        if not self._writes:
            return
        try:
            self._board.close()
        except OSError as error:
            warnings.warn(
                f'the TensorBoard events in {self._path.parent / "tensorboard"} are incomplete: '
                f'{error}',
                FMENWarning,
                stacklevel=2,
            )


def _step_of(line: str) -> float:
    try:
        return json.loads(line)['step']
    except (ValueError, KeyError, TypeError):  # the process was killed while writing
        return math.inf
