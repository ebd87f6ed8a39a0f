"""Batches of patches as a pure function of (seed, step), prefetched by Grain.

A batch contains `lr` [N, p, p, 3] and `hr` [N, scale p, scale p, 3], uint8 RGB in 0..255, where p
is the patch size in LR pixels. With `unshuffled`, `hr` is [N, p, p, 3 scale^2], the layout of a
network's output before the pixel shuffle.
"""

import dataclasses
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import absl.flags
import grain
import numpy as np

from fmen_jax.data.prepared import Source
from fmen_jax.errors import InputError, check_choice, check_range
from fmen_jax.images.pixel_shuffle import pixel_unshuffle
from fmen_jax.images.symmetries import dihedral

Sampling = Literal['uniform', 'error']


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """Settings of the training batches."""

    patch: int = 64
    """Height and width of a patch in LR pixels."""
    batch: int = 64
    """Number of patches in the global batch, over all processes."""
    sampling: Sampling = 'uniform'
    """Distribution of crop positions: 'uniform' over all positions in all images, or 'error',
    proportional to the error of bicubic interpolation in the patch, so that flat areas are rare."""
    flips: bool = True
    """Whether to rotate and mirror each patch at random, in one of eight ways."""
    seed: int = 0
    """Seed for crop positions and flips."""
    threads: int = 2
    """Number of threads that prepare batches in advance. Does not affect the contents of a
    batch."""
    processes: int = 0
    """Number of worker processes that prepare batches, each with its own threads. 0 means that the
    threads run in the training process, which is fast enough for most runs."""
    ahead: int = 8
    """Maximum number of batches that are prepared in advance."""

    def __post_init__(self) -> None:
        for name, least in (
            *(('patch', 1), ('batch', 1), ('seed', 0)),
            *(('threads', 0), ('processes', 0), ('ahead', 0)),
        ):
            check_range(f'pipeline.{name}', getattr(self, name), least=least)
        check_choice('pipeline.sampling', self.sampling, get_args(Sampling))


class Batches:
    """Random access to the batches of one process: `batches[step]`.

    Crop positions are drawn according to `PipelineConfig.sampling`. Sample k of a step's global
    batch depends only on (seed, step, k), so the numbers of processes and threads do not change the
    batches.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        config: PipelineConfig,
        *,
        process: int = 0,
        processes: int = 1,
        unshuffled: bool = False,
    ) -> None:
        """Check image sizes, scales and the batch size.

        Raises:
          InputError: If the sources have different scales, an image is smaller than a patch, or
            the batch size is not divisible by the number of processes.
        """
        scales = sorted({source.scale for source in sources})
        if len(scales) != 1:
            raise InputError(f'the sources have scales {scales}; expected one scale for all.')
        if config.batch % processes:
            raise InputError(
                f'pipeline.batch is {config.batch}, which {processes} processes cannot share '
                f'evenly: choose a multiple of {processes}.'
            )
        self._pictures = [(s, i) for s in sources for i in range(len(s.entries))]
        sizes = [(s.entries[i].height, s.entries[i].width) for s, i in self._pictures]
        small = [
            s.entries[i].name
            for (s, i), size in zip(self._pictures, sizes, strict=True)
            if min(size) < config.patch
        ]
        if small:
            raise InputError(
                f'{len(small)} pictures are smaller than a patch of {config.patch} LR pixels, such '
                f'as {", ".join(small[:3])}: remove them, or choose a smaller pipeline.patch.'
            )
        self.scale = scales[0]
        self._config = config
        self._unshuffled = unshuffled
        self._share = config.batch // processes
        self._first = process * self._share
        positions = _UniformPositions if config.sampling == 'uniform' else _ErrorPositions
        self._positions = positions(self._pictures, config.patch)

    def __len__(self) -> int:
        """Return a number larger than any step: there is no last batch."""
        return 2**31 - 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return this process's part of the batch of a step."""
        c = self._config
        samples = [
            self._sample(index * c.batch + k) for k in range(self._first, self._first + self._share)
        ]
        lr, hr = (np.stack(images) for images in zip(*samples, strict=True))
        return {'lr': lr, 'hr': pixel_unshuffle(hr, self.scale) if self._unshuffled else hr}

    def _sample(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        p, s = self._config.patch, self.scale
        key = np.array([self._config.seed, number], np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        picture, y, x = self._positions.draw(generator)
        source, entry = self._pictures[picture]
        lr, hr = source.pixels(entry)
        lr, hr = lr[y : y + p, x : x + p], hr[y * s : (y + p) * s, x * s : (x + p) * s]
        turn = int(generator.integers(8)) if self._config.flips else 0
        return dihedral(lr, turn), dihedral(hr, turn)


class _UniformPositions:
    """Crop positions with uniform probability."""

    def __init__(self, pictures: Sequence[tuple[Source, int]], patch: int) -> None:
        entries = [source.entries[number] for source, number in pictures]
        self._widths = [entry.width - patch + 1 for entry in entries]
        heights = [entry.height - patch + 1 for entry in entries]
        self._ends = np.cumsum([h * w for h, w in zip(heights, self._widths, strict=True)])

    def draw(self, generator: np.random.Generator) -> tuple[int, int, int]:
        """Return the image number, and the row and column of the patch's upper left corner."""
        place = int(generator.integers(self._ends[-1]))
        picture = int(np.searchsorted(self._ends, place, side='right'))
        place -= int(self._ends[picture - 1]) if picture else 0
        return picture, *divmod(place, self._widths[picture])


class _ErrorPositions:
    """Crop positions whose probability is proportional to the interpolation error in the patch.

    The error in a patch is computed from an integral image: S[y, x] is the sum of the error above
    and to the left of (y, x), so the sum over a patch of size p at (y, x) is
    S[y+p, x+p] - S[y, x+p] - S[y+p, x] + S[y, x]. A row of positions is drawn first, from the
    cumulative sum over all rows of all images, and then a column.
    """

    def __init__(self, pictures: Sequence[tuple[Source, int]], patch: int) -> None:
        self._patch = patch
        self._integrals: list[np.ndarray] = []
        rows: list[np.ndarray] = []
        for source, number in pictures:
            error = source.interpolation_error(number)
            integral = np.zeros((error.shape[0] + 1, error.shape[1] + 1))
            np.cumsum(np.cumsum(error, 0, np.float64), 1, out=integral[1:, 1:])
            self._integrals.append(integral)
            rows.append(self._patch_sums(integral).sum(1))
        self._first_rows = np.cumsum([0, *(len(weights) for weights in rows)])
        self._row_ends = np.cumsum(np.concatenate(rows))

    def _patch_sums(self, integral: np.ndarray) -> np.ndarray:
        """Return each patch's error sum, given an integral image of at least patch + 1 rows."""
        p = self._patch
        columns = integral[:, p:] - integral[:, :-p]
        return np.maximum(columns[p:] - columns[:-p], 0)  # rounding can give negative sums

    def draw(self, generator: np.random.Generator) -> tuple[int, int, int]:
        """Return the image number, and the row and column of the patch's upper left corner."""
        row = _weighted(self._row_ends, generator)
        picture = int(np.searchsorted(self._first_rows, row, side='right')) - 1
        y = row - int(self._first_rows[picture])
        sums = self._patch_sums(self._integrals[picture][y : y + self._patch + 1])[0]
        return picture, y, _weighted(np.cumsum(sums), generator)


def _weighted(ends: np.ndarray, generator: np.random.Generator) -> int:
    """Draw an index by the weights with cumulative sum `ends`; uniformly if all are 0."""
    if not ends[-1] > 0:
        return int(generator.integers(len(ends)))
    drawn = np.searchsorted(ends, generator.random() * ends[-1], side='right')
    return min(int(drawn), len(ends) - 1)


def prefetched(
    batches: Batches, config: PipelineConfig, *, start: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Iterate over the batches from a step on, prepared in advance by threads or processes."""
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=config.ahead)
    dataset: Any = grain.MapDataset.source(batches)  # pyright: ignore[reportArgumentType]
    ahead = dataset[start:].to_iter_dataset(options)
    if config.processes:
        if not absl.flags.FLAGS.is_parsed():  # Grain's workers read absl flags
            absl.flags.FLAGS.mark_as_parsed()
        workers = grain.MultiprocessingOptions(config.processes, per_worker_buffer_size=2)
        ahead = ahead.mp_prefetch(workers, worker_init_fn=_end_with_parent)
    return iter(ahead)


def _end_with_parent(index: int, count: int) -> None:
    """End this worker process when the process that started it ends, even if that was killed.

    Grain's workers would wait forever for someone to take their batches.
    """
    del index, count
    if not (parent := multiprocessing.parent_process()):
        return

    def watch() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
