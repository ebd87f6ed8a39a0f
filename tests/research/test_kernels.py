"""Singular values of convolutions against dense matrices."""

import numpy as np
import pytest

from fmen_jax.errors import InputError
from fmen_jax.research.kernels import gains, kernels_of, singular_values


def dense(kernel: np.ndarray, height: int, width: int) -> np.ndarray:
    """The matrix of a convolution with periodic borders, [H W F, H W C], entry by entry."""
    rows, columns, inputs, outputs = kernel.shape
    matrix = np.zeros((height, width, outputs, height, width, inputs))
    for y in range(height):
        for x in range(width):
            for i in range(rows):
                for j in range(columns):
                    matrix[y, x, :, (y + i) % height, (x + j) % width] += kernel[i, j].T
    return matrix.reshape(height * width * outputs, -1)


@pytest.mark.parametrize('shape', [(3, 3, 4, 5), (1, 1, 3, 2), (3, 2, 2, 2)])
@pytest.mark.parametrize('size', [(6, 6), (4, 7)])
def test_singular_values_are_those_of_the_dense_operator(
    shape: tuple[int, ...], size: tuple[int, int]
) -> None:
    kernel = np.random.default_rng(0).normal(size=shape)
    found = singular_values(kernel, *size)
    assert found.shape == (*size, min(shape[2:]))
    expected = np.linalg.svd(dense(kernel, *size), compute_uv=False)
    np.testing.assert_allclose(np.sort(found, axis=None), np.sort(expected)[-found.size :], 1e-9)


def test_a_kernel_with_nan_has_no_singular_values() -> None:
    for value in (np.nan, np.inf):
        kernel = np.ones((3, 3, 4, 5))
        kernel[1, 1, 2, 3] = value
        assert np.isnan(singular_values(kernel, 4, 6)).all()
        assert np.isnan(gains(kernel).condition)


def test_gains_of_known_kernels() -> None:
    identity = np.zeros((3, 3, 5, 5))
    identity[1, 1] = 2 * np.eye(5)
    found = gains(identity)
    np.testing.assert_allclose([found.largest, found.median, found.smallest], 2)
    assert found.condition == pytest.approx(1)
    box = np.ones((3, 3, 1, 1)) / 9
    assert gains(box).largest == pytest.approx(1)
    assert gains(box, 30).smallest == pytest.approx(0, abs=1e-12)  # a third of 30: 1 + 2 cos = 0


def test_kernels_of_finds_all_convolutions() -> None:
    kernel = np.zeros((1, 1, 2, 2))
    params = {'a': {'kernel': kernel, 'bias': 0}, 'b': {'c_0': {'d': {'kernel': kernel}}}}
    assert list(kernels_of(params)) == ['a', 'b/c_0/d']


def test_bad_kernels_are_refused() -> None:
    with pytest.raises(InputError, match='not larger'):
        singular_values(np.zeros((7, 3, 1, 1)), 6, 6)
    with pytest.raises(InputError, match='expected'):
        singular_values(np.zeros((3, 3)), 6, 6)
