"""imresize against the files of the public benchmarks, pixel by pixel."""

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmen_jax.data.pairs import find_pairs
from fmen_jax.errors import InputError
from fmen_jax.images.bicubic import CONVENTIONS, imresize
from fmen_jax.images.read import read_rgb8
from tests.helpers import assert_close


def pairs(folder: Path, scale: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """HR, cropped to a multiple of the scale, and LR of a benchmark."""
    found = []
    for pair in find_pairs(folder, scale):
        assert pair.lr
        hr, lr = read_rgb8(pair.hr), read_rgb8(pair.lr)
        height, width = (size // scale * scale for size in hr.shape[:2])
        found.append((hr[:height, :width], lr))
    return found


@pytest.mark.parity
@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize(
    ('name', 'convention', 'count'),
    [('Set5', 'edsr', 5), ('Set14', 'edsr', 14), ('SelfExSR/Set5', 'selfexsr', 5)],
)
def test_benchmark_files_to_the_last_pixel(
    name: str, convention: str, count: int, scale: int, shared: Callable[[str], Path]
) -> None:
    resize = partial(imresize, scale=1 / scale, convention=convention)
    found = pairs(shared(f'data/benchmarks/{name}'), scale)
    assert len(found) == count
    other = {'edsr': 'selfexsr', 'selfexsr': 'edsr'}[convention]
    differing = 0
    for hr, lr in found:
        np.testing.assert_array_equal(resize(hr), lr)
        np.testing.assert_array_equal(jax.jit(resize)(jnp.asarray(hr)), lr)
        differing += (imresize(hr, 1 / scale, convention=other) != lr).sum()
    assert differing  # the twin: the conventions can be told apart


@pytest.mark.parity
@pytest.mark.parametrize('scale', [2, 3, 4])
def test_basicsr_files_to_one_level(scale: int, shared: Callable[[str], Path]) -> None:
    found = pairs(shared('data/benchmarks/Set5_mod12'), scale)
    assert len(found) == 5
    for hr, lr in found:
        ours = imresize(hr, 1 / scale, convention='basicsr')
        assert abs(ours.astype(int) - lr).max() <= 1
        assert (ours != lr).mean() < 0.001
        rounded_between = imresize(hr, 1 / scale)
        assert (rounded_between != lr).mean() > 0.05  # the other convention: some 11 % differ


def reference(image: np.ndarray, scale: float, size: int, mirror: bool) -> np.ndarray:
    """One vertical pass in float64, tap by tap: the definition, written for clarity alone."""
    out = np.zeros((size, *image.shape[1:]))
    rows = len(image)
    stretch = max(1 / scale, 1)
    for i in range(size):
        center = (i + 0.5) / scale - 0.5
        taps = range(int(np.floor(center - 2 * stretch)), int(np.ceil(center + 2 * stretch)) + 1)
        total = 0.0
        for j in taps:
            t = abs(center - j) / stretch
            w = 1.5 * t**3 - 2.5 * t**2 + 1 if t <= 1 else -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
            w *= t < 2
            source = j % (2 * rows) if mirror else min(max(j, 0), rows - 1)
            out[i] += w * image[2 * rows - 1 - source if source >= rows else source]
            total += w
        out[i] /= total
    return out


@pytest.mark.parametrize('scale', [1 / 2, 1 / 3, 1 / 4, 0.4, 1 / 1.5, 1.0, 1.3, 2, 3, 4])
@pytest.mark.parametrize('convention', CONVENTIONS)
def test_any_scale_in_numpy_and_jit(convention: str, scale: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    rule = CONVENTIONS[convention]
    size = [int(np.ceil(n * scale - 1e-9)) for n in image.shape[:2]]

    def whole(finish: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        mirror = rule.edges == 'mirror'
        rows = reference(image.astype(float), scale, size[0], mirror)
        rows = finish(rows) if rule.rounds_between else rows
        return finish(reference(rows.swapaxes(0, 1), scale, size[1], mirror).swapaxes(0, 1))

    expected = whole(lambda x: np.clip(np.floor(x + 0.5 + 1e-9), 0, 255))
    resize = partial(imresize, scale=scale, convention=convention)
    assert resize(image).dtype == np.uint8
    np.testing.assert_array_equal(resize(image), expected)
    np.testing.assert_array_equal(jax.jit(resize)(jnp.asarray(image)), resize(image))


@pytest.mark.parametrize('scale', [1 / 4, 3])
def test_floats_are_neither_rounded_nor_clamped(scale: float) -> None:
    image = np.random.default_rng(1).normal(100, 200, (2, 9, 12, 1))
    size = [int(np.ceil(n * scale)) for n in (9, 12)]
    rows = reference(image[0], scale, size[0], mirror=True)
    expected = reference(rows.swapaxes(0, 1), scale, size[1], mirror=True).swapaxes(0, 1)
    found = imresize(image, scale)
    assert found.dtype == np.float64
    assert_close(found[0], expected, 1e-10)
    single = imresize(jnp.asarray(image, jnp.float32), scale)
    assert single.dtype == jnp.float32
    assert_close(single[0], expected, 1e-5 * np.ptp(expected))


def cubic(t: Fraction) -> Fraction:
    t = abs(t)
    if t <= 1:
        return Fraction(3, 2) * t**3 - Fraction(5, 2) * t**2 + 1
    return Fraction(-1, 2) * t**3 + Fraction(5, 2) * t**2 - 4 * t + 2


@pytest.mark.parametrize('factor', [2, 4, 6])
def test_exact_ties_round_up(factor: int) -> None:
    """Against rational arithmetic. (Float64 misses a tie or two of x6 here.)"""
    steps = np.random.default_rng(0).integers(-2, 3, (1200, 1, 1200))
    image = np.clip(np.cumsum(steps, axis=2) + 128, 0, 255).astype(np.uint8)
    offsets = [Fraction(2 * k + 1, 2 * factor) for k in range(-2 * factor, 2 * factor)]
    denominator = 16 * factor**4
    weights = [cubic(t) / factor * denominator for t in offsets]
    assert all(w.denominator == 1 for w in weights)
    rows = range(2, 1200 // factor - 2)
    # twice the sum over its denominator: odd where it is a tie
    twice = np.array(
        [
            sum(
                2 * int(w) * image[row * factor + factor // 2 - 2 * factor + k, 0].astype(int)
                for k, w in enumerate(weights)
            )
            for row in rows
        ]
    )
    assert (twice % (2 * denominator) == denominator).sum() > 5
    expected = np.clip((twice + denominator) // (2 * denominator), 0, 255)
    # Equal columns: the second pass changes nothing.
    resize = partial(imresize, scale=Fraction(1, factor))
    wide = np.repeat(image, factor, axis=1)
    np.testing.assert_array_equal(resize(wide)[2:-2, 0], expected)
    np.testing.assert_array_equal(jax.jit(resize)(jnp.asarray(wide))[2:-2, 0], expected)


@pytest.mark.parametrize(
    ('image', 'options', 'message'),
    [
        (np.zeros((4, 4), np.uint8), {}, r'uint8\[4, 4\]; expected uint8 or float'),
        (np.zeros((4, 4, 3), np.uint16), {}, 'image is uint16'),
        (np.zeros((4, 4, 3)), {'convention': 'pil'}, "no convention 'pil'; there are edsr, selfex"),
        (np.zeros((4, 4, 3)), {'scale': -1}, 'scale is -1; expected a finite factor of 1/1000'),
        (np.zeros((4, 4, 3)), {'scale': 0.0004}, 'scale is 0.0004; expected a finite factor'),
        (np.zeros((4, 4, 3)), {'scale': float('nan')}, 'scale is nan'),
        (np.zeros((4, 4, 3)), {'scale': float('inf')}, 'scale is inf'),
        (np.zeros((4, 0, 3)), {}, r'float64\[4, 0, 3\]; .* with a height and width of 1 or more'),
        (np.zeros((99, 4, 3), np.uint8), {'scale': 1 / 33}, 'by a factor of 31 at most'),
    ],
)
def test_bad_input(image: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        imresize(image, **{'scale': 0.5, **options})
