"""Scores of a network on the image pairs of a benchmark."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from fmen_jax.data.pairs import Loaded, Pair, load_pair
from fmen_jax.errors import InputError
from fmen_jax.evaluation.metrics import SSIM_WINDOW
from fmen_jax.evaluation.protocols import Protocol, Score
from fmen_jax.images.bicubic import imresize


@dataclasses.dataclass(frozen=True)
class ImageScore:
    """Score of one image and of its bicubic interpolation (by our imresize). PSNR is in dB."""

    name: str
    psnr: float
    ssim: float
    bicubic_psnr: float
    bicubic_ssim: float


@dataclasses.dataclass(frozen=True)
class Result:
    """Scores of a network on a benchmark."""

    weights: str
    data: str
    scale: int
    protocol: Protocol
    images: list[ImageScore]

    @property
    def mean(self) -> ImageScore:
        """Mean score over the images."""
        rows = [dataclasses.astuple(score)[1:] for score in self.images]
        return ImageScore('mean', *(float(value) for value in np.mean(rows, axis=0)))


def upscale_bicubic(lr: np.ndarray, scale: int) -> np.ndarray:
    """Upscale [H, W, 3] uint8 bicubically to [scale H, scale W, 3] float64, not rounded."""
    return imresize(lr.astype(np.float64), scale)


def check(pairs: list[Pair], *, scale: int, protocol: Protocol) -> None:
    """Read all pairs, so that a pair that cannot be scored is found before the evaluation starts.

    Raises:
      InputError: An image cannot be read or is too small. The message names the image.
    """
    least = SSIM_WINDOW + 2 * protocol.crop(scale)
    for pair in pairs:
        height, width, _ = load_pair(pair, scale).hr.shape
        if min(height, width) < least:
            raise InputError(
                f'{pair.hr}: {width}x{height} is too small; protocol {protocol.name!r} needs '
                f'{least} rows and columns at x{scale}.'
            )


def evaluate(
    upscale: Callable[[np.ndarray], np.ndarray],
    pairs: list[Pair],
    *,
    scale: int,
    protocol: Protocol,
    inspect: Callable[[Loaded, np.ndarray, ImageScore], object] | None = None,
) -> Iterator[ImageScore]:
    """Score images one after the other.

    Args:
      upscale: Function from [H, W, 3] uint8 to [scale H, scale W, 3].
      pairs: Pairs from `fmen_jax.data.pairs.find_pairs`.
      scale: Scale factor.
      protocol: Protocol by which outputs are scored.
      inspect: Function called with each pair, its output and its score, for example to draw them.

    Yields:
      The score of each pair, in order.
    """
    for pair in pairs:
        loaded = load_pair(pair, scale)
        output = upscale(loaded.lr)
        target = loaded.hr.astype(np.float64)
        ours: Score = protocol.score(output.astype(np.float64), target, scale=scale)
        bicubic = protocol.score(upscale_bicubic(loaded.lr, scale), target, scale=scale)
        score = ImageScore(pair.name, *map(float, (*ours, *bicubic)))
        if inspect:
            inspect(loaded, output, score)
        yield score
