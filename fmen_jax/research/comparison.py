"""Two networks on the same pictures: paired differences, and where they differ the most."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import scipy.stats

from fmen_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Paired:
    """Differences of a score, ours minus theirs, over the same pictures."""

    differences: dict[str, float]
    """Difference by picture, the best one first."""
    mean: float
    half_width: float
    """Half the width of the 95 % confidence interval of the mean, by Student's t distribution; NaN
    for a single picture. It covers the choice of the pictures, not that of the training seed."""


def paired(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Paired:
    """Return the differences between two networks, given a score of each picture.

    Args:
      ours: a score by picture, such as its PSNR in dB.
      theirs: the scores of the other network for the same pictures.

    Raises:
      InputError: If the pictures differ, there are none, or a score is not finite.
    """
    if not ours or ours.keys() != theirs.keys():
        raise InputError(
            f'scores of {sorted(ours)} and of {sorted(theirs)}; expected the same pictures, at '
            'least one.'
        )
    differences = {name: ours[name] - theirs[name] for name in ours}
    values = np.array(list(differences.values()))
    if not np.isfinite(values).all():
        raise InputError(f'differences {differences}; expected finite scores.')
    count = len(values)
    spread = values.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
    half = float(scipy.stats.t.ppf(0.975, max(count - 1, 1)) * spread)
    ranked = dict(sorted(differences.items(), key=lambda item: -item[1]))
    return Paired(ranked, float(values.mean()), half)


def find_difference(
    ours: np.ndarray, theirs: np.ndarray, truth: np.ndarray, side: int, *, better: bool
) -> tuple[int, int]:
    """Return row and column of the crop where our squared error differs the most from theirs.

    Args:
      ours: image [H, W, C].
      theirs: the image of the other network.
      truth: the HR image.
      side: height and width of the crop in pixels; the image, where that is smaller.
      better: whether to look for the crop where our error is smaller, or where it is larger.

    Raises:
      InputError: If the shapes differ.
    """
    if not ours.shape == theirs.shape == truth.shape:
        shapes = [list(image.shape) for image in (ours, theirs, truth)]
        raise InputError(f'images are {shapes}; expected one shape [H, W, C].')
    wide = truth.astype(np.float64)
    gain = (np.square(theirs - wide) - np.square(ours - wide)).sum(2)
    total = np.pad(gain.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    h, w = (min(side, size) for size in gain.shape)
    inside = total[h:, w:] - total[:-h, w:] - total[h:, :-w] + total[:-h, :-w]
    row, column = np.unravel_index(inside.argmax() if better else inside.argmin(), inside.shape)
    return int(row), int(column)
