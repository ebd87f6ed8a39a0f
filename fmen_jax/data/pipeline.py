"""Batches of patches, as a pure function of (seed, step), and their prefetching by Grain.

A batch is `lr` [n, p, p, 3] and `hr` [n, scale p, scale p, 3], uint8, in 0..255; or, unshuffled,
`hr` [n, p, p, 3 scale^2]: what a network gives before its pixel shuffle.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import absl.flags
import grain
import numpy as np

from fmen_jax.data.sources import Source
from fmen_jax.data.symmetries import dihedral
from fmen_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """Settings of the batches."""

    patch: int = 64
    """Height and width of a patch, in LR pixels."""
    batch: int = 64
    """Patches of the global batch, over all processes."""
    flips: bool = True
    """Whether a patch is turned and mirrored at random, in one of eight ways."""
    seed: int = 0
    """Of the places and the flips."""
    threads: int = 2
    """That make batches ahead. Which has no influence on what is in them."""
    processes: int = 0
    """That make batches instead, each with its threads; where threads are not enough."""
    ahead: int = 8
    """Batches that wait at most."""


class Batches:
    """Random access to the batches of one process: `batches[step]`.

    Every place in every picture is equally probable. Sample k of the global batch of a step depends
    on (seed, step, k) alone, so neither processes nor threads change what is trained on.
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
        """Checks sizes and counts.

        Raises:
          InputError: sources of different scales, pictures smaller than a patch, or a batch that
            the processes cannot share.
        """
        scales = sorted({source.scale for source in sources})
        if len(scales) != 1:
            raise InputError(f'the sources have scales {scales}; expected one scale for all.')
        if config.batch % processes:
            raise InputError(
                f'a batch of {config.batch} cannot be shared by {processes} processes: choose a '
                'multiple.'
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
                f'as {", ".join(small[:3])}: remove them, or choose a smaller patch.'
            )
        self.scale = scales[0]
        self._config = config
        self._unshuffled = unshuffled
        self._share = config.batch // processes
        self._first = process * self._share
        self._widths = [width - config.patch + 1 for _, width in sizes]
        places = [h - config.patch + 1 for h, _ in sizes]
        self._ends = np.cumsum([a * b for a, b in zip(places, self._widths, strict=True)])

    def __len__(self) -> int:
        """There is no last batch."""
        return 2**31 - 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """This process's part of the batch of a step."""
        c = self._config
        samples = [
            self._sample(index * c.batch + k) for k in range(self._first, self._first + self._share)
        ]
        lr, hr = (np.stack(images) for images in zip(*samples, strict=True))
        return {'lr': lr, 'hr': unshuffle(hr, self.scale) if self._unshuffled else hr}

    def _sample(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        p, s = self._config.patch, self.scale
        key = np.array([self._config.seed, number], np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        place = int(generator.integers(self._ends[-1]))
        picture = int(np.searchsorted(self._ends, place, side='right'))
        place -= int(self._ends[picture - 1]) if picture else 0
        y, x = divmod(place, self._widths[picture])
        source, entry = self._pictures[picture]
        lr, hr = source.pixels(entry)
        lr, hr = lr[y : y + p, x : x + p], hr[y * s : (y + p) * s, x * s : (x + p) * s]
        turn = int(generator.integers(8)) if self._config.flips else 0
        return dihedral(lr, turn), dihedral(hr, turn)


def unshuffle(images: np.ndarray, scale: int) -> np.ndarray:
    """[N, s H, s W, C] -> [N, H, W, C s^2], in PyTorch's order: channel = c s^2 + dy s + dx."""
    n, height, width, c = images.shape
    y = images.reshape(n, height // scale, scale, width // scale, scale, c)
    return y.transpose(0, 1, 3, 5, 2, 4).reshape(n, height // scale, width // scale, -1)


def prefetched(
    batches: Batches, config: PipelineConfig, *, start: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """The batches from a step on, made ahead by threads or by processes, in the same order."""
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=config.ahead)
    dataset: Any = grain.MapDataset.source(batches)  # pyright: ignore[reportArgumentType]
    ahead = dataset[start:].to_iter_dataset(options)
    if config.processes:
        if not absl.flags.FLAGS.is_parsed():  # Grain's workers ask for flags of theirs
            absl.flags.FLAGS.mark_as_parsed()
        workers = grain.MultiprocessingOptions(config.processes, per_worker_buffer_size=2)
        ahead = ahead.mp_prefetch(workers)
    return iter(ahead)
