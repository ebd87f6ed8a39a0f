"""Paired differences and the crops that show them."""

import math

import numpy as np
import pytest

from fmen_jax.errors import InputError
from fmen_jax.research.comparison import find_difference, paired


def test_differences_are_sorted_and_have_an_interval() -> None:
    ours, theirs = {'a': 30.0, 'b': 28.5, 'c': 33.0}, {'a': 29.9, 'b': 28.6, 'c': 32.7}
    found = paired(ours, theirs)
    assert list(found.differences) == ['c', 'a', 'b']
    assert found.mean == pytest.approx(0.1)
    # Standard deviation 0.2, n = 3; the quantile of t with two degrees of freedom is 4.3027.
    assert found.half_width == pytest.approx(4.3027 * 0.2 / 3**0.5, rel=1e-4)
    assert math.isnan(paired({'a': 1.0}, {'a': 2.0}).half_width)


def test_pictures_must_be_the_same() -> None:
    with pytest.raises(InputError, match='the same pictures'):
        paired({'a': 1.0}, {'b': 1.0})
    with pytest.raises(InputError, match='finite'):
        paired({'a': math.inf}, {'a': 1.0})


def test_crops_are_where_the_errors_differ() -> None:
    truth = np.full((20, 30, 3), 100, np.uint8)
    ours, theirs = truth.copy(), truth.copy()
    theirs[4:6, 7:9] = 120  # we are better here
    ours[15:17, 20:22] = 0  # and worse here
    row, column = find_difference(ours, theirs, truth, 8, better=True)
    assert row <= 4 < 6 <= row + 8
    assert column <= 7 < 9 <= column + 8
    row, column = find_difference(ours, theirs, truth, 8, better=False)
    assert row <= 15 < 17 <= row + 8
    assert column <= 20 < 22 <= column + 8
    assert find_difference(ours, theirs, truth, 99, better=True) == (0, 0)
    with pytest.raises(InputError, match='one shape'):
        find_difference(ours[1:], theirs, truth, 8, better=True)
