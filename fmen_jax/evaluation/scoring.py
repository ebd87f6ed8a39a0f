"""How a network scores on the pairs of a benchmark."""

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
    """One picture's score, beside that of bicubic interpolation (our imresize upward)."""

    name: str
    psnr: float
    ssim: float
    bicubic_psnr: float
    bicubic_ssim: float


@dataclasses.dataclass(frozen=True)
class Result:
    """A network on a benchmark."""

    weights: str
    data: str
    scale: int
    protocol: Protocol
    images: list[ImageScore]

    @property
    def mean(self) -> ImageScore:
        """The mean over the pictures."""
        rows = [dataclasses.astuple(score)[1:] for score in self.images]
        return ImageScore('mean', *(float(value) for value in np.mean(rows, axis=0)))


def upscale_bicubic(lr: np.ndarray, scale: int) -> np.ndarray:
    """[H, W, 3] uint8 -> [scale H, scale W, 3] float64, not rounded."""
    return imresize(lr.astype(np.float64), scale)


def check(pairs: list[Pair], *, scale: int, protocol: Protocol) -> None:
    """Read all pairs, so that one that cannot be scored is found before the work.

    Raises:
      InputError: a picture that cannot be read or is too small; it is named.
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
    """Score pictures one after the other.

    Args:
      upscale: [H, W, 3] uint8 -> [scale H, scale W, 3].
      pairs: of `fmen_jax.data.pairs.find_pairs`.
      scale: the factor.
      protocol: how to measure.
      inspect: called with each pair, the output and its score, for pictures of them.
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
