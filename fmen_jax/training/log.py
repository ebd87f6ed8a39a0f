"""The log of a run: JSON lines, TensorBoard and whoever listens; written by process 0."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorboardX

from fmen_jax.files import write_text
from fmen_jax.images import rgb8

Report = Callable[[dict[str, Any]], object]


class Log:
    """Writes `metrics.jsonl`, `tensorboard/` and `pictures/` in a workdir.

    A run that goes on at a step forgets what an earlier one wrote after its checkpoint there.
    """

    def __init__(self, workdir: Path, start: int, report: Report) -> None:
        self._path = workdir / 'metrics.jsonl'
        self._report = report
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        if self._path.exists():
            lines = self._path.read_text(encoding='utf-8').splitlines()
            kept = [line for line in lines if _step_of(line) <= start]
            write_text(self._path, ''.join(f'{line}\n' for line in kept))
        folder = str(workdir / 'tensorboard')
        self._board = tensorboardX.SummaryWriter(folder, purge_step=start + 1)

    def record(self, step: int, **values: Any) -> None:
        """Write numbers of a step; a dict of numbers becomes one curve each."""
        if not self._writes:
            return
        with self._path.open('a', encoding='utf-8') as file:
            file.write(json.dumps({'step': step, **values}) + '\n')
        for name, value in values.items():
            curves = value if isinstance(value, dict) else {'': value}
            for part, number in curves.items():
                self._board.add_scalar(f'{name}/{part}'.rstrip('/'), number, step)
        self._report({'step': step, **values})

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Show [H, W, 3] uint8 in TensorBoard, and its last state in pictures/."""
        if self._writes:
            path = self._path.parent / 'pictures' / f'{name}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            rgb8.write(path, rgb8.Picture(pixels))
            self._board.add_image(name, pixels, step, dataformats='HWC')

    def close(self) -> None:
        """Write what waits."""
        if self._writes:
            self._board.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)['step']
    except ValueError:  # cut off by a kill
        return math.inf
