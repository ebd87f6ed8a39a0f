"""The log of a run, which process 0 writes as JSON lines, to TensorBoard and to a callback."""

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

    When a run is resumed from the checkpoint of step `start`, later records are discarded.
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
        """Write the values of a step; each value in a dict becomes a curve of its own."""
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
        """Write an image [H, W, 3] uint8 to TensorBoard, and its latest version to pictures/."""
        if self._writes:
            path = self._path.parent / 'pictures' / f'{name}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            rgb8.write(path, rgb8.Picture(pixels))
            self._board.add_image(name, pixels, step, dataformats='HWC')

    def close(self) -> None:
        """Write pending TensorBoard events and close the file."""
        if self._writes:
            self._board.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)['step']
    except ValueError:  # the process was killed while writing
        return math.inf
