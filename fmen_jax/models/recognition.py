"""Hyper-parameters read from the keys and shapes of a state dict."""

import re
from collections import Counter
from collections.abc import Iterable

from fmen_jax.errors import InputError
from fmen_jax.models.protocol import MAX_BLOCKS, MAX_SCALE, Shapes


def common_size(shapes: Shapes, pattern: str, axis: int = 0) -> int | None:
    """Return the most frequent size of one axis over all keys that match; None if none does.

    The most frequent size is used so that a single missing or misshapen tensor does not lead to a
    wrong configuration; the error raised later then names that tensor.
    """
    sizes = Counter(
        shape[axis]
        for key, shape in shapes.items()
        if re.fullmatch(pattern, key) and len(shape) > axis
    )
    return sizes.most_common(1)[0][0] if sizes else None


def count_blocks(keys: Iterable[str], prefix: str, start: int = 0) -> int:
    """Return how many of prefix0., prefix1., ... exist without a gap, counted from `start`.

    Raises:
      InputError: If there are more than `MAX_BLOCKS`.
    """
    pattern = re.compile(re.escape(prefix) + r'(\d+)\.')
    numbers = {m[1] for key in keys if (m := pattern.match(key))}
    count = 0
    while str(start + count) in numbers:
        count += 1
    if count > MAX_BLOCKS:
        raise InputError(f'there are {count} blocks {prefix}N; expected {MAX_BLOCKS} or fewer.')
    return count


def scale_of(shapes: Shapes, conv: str, n_colors: int) -> int | None:
    """Return the scale s of a last convolution with n_colors s^2 outputs; None if there is none."""
    squares = {n_colors * s * s: s for s in range(1, MAX_SCALE + 1)}
    rows = [shapes[k][0] for k in (f'{conv}.weight', f'{conv}.bias') if shapes.get(k)]
    return next((squares[count] for count in rows if count in squares), None)
