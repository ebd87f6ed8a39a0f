"""The preconditioner of a linear block against its dense matrix."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from fmen_jax.errors import InputError
from fmen_jax.models.reparam import collapse
from fmen_jax.research.preconditioner import (
    lanczos_density,
    mean_diagonal,
    preconditioner,
)


def rrrb(channels: int = 2, ratio: int = 2) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    wide = channels * ratio
    shapes = {
        'expand_conv': (1, 1, channels, wide),
        'fea_conv': (3, 3, wide, wide),
        'reduce_conv': (1, 1, wide, channels),
    }
    return {
        name: {
            'kernel': generator.normal(0, 0.5, shape),
            'bias': generator.normal(0, 0.5, shape[3]),
        }
        for name, shape in shapes.items()
    }


def dense(params: Any) -> np.ndarray:
    flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, params))
    jacobian = jax.jacobian(lambda p: ravel_pytree(collapse(unravel(p)))[0])(flat)
    return np.asarray(jacobian @ jacobian.T)


def test_products_are_those_of_the_dense_matrix(x64: None) -> None:
    params = rrrb()
    operator, expected = preconditioner(collapse, params), dense(params)
    assert operator.size == len(expected) == 3 * 3 * 2 * 2 + 2
    found = np.stack([operator.multiply(row) for row in np.eye(operator.size)])
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_lanczos_finds_all_eigenvalues_and_their_density(x64: None) -> None:
    params = rrrb()
    operator, matrix = preconditioner(collapse, params), dense(params)
    expected = np.linalg.eigvalsh(matrix)
    whole = lanczos_density(operator.multiply, operator.size, steps=operator.size, probes=1)
    np.testing.assert_allclose(whole.eigenvalues, expected, rtol=1e-7)
    found = lanczos_density(operator.multiply, operator.size, steps=12, probes=200)
    assert found.weights.sum() == pytest.approx(1)
    # With random signs the mean is the trace over n up to the entries beside the diagonal.
    assert found.mean == pytest.approx(expected.mean(), rel=0.05)
    assert found.eigenvalues[-1] == pytest.approx(expected[-1], rel=1e-3)
    assert found.quantile(0.5) == pytest.approx(np.median(expected), rel=0.2)


def test_step_on_the_parameters_moves_the_kernel_by_the_preconditioned_gradient(x64: None) -> None:
    params = rrrb()
    target = jax.tree.map(lambda a: a + 0.1, collapse(params))

    def loss(conv: Any) -> Any:
        return sum(jnp.square(a - b).sum() for a, b in zip(
            jax.tree.leaves(conv), jax.tree.leaves(target), strict=True))  # fmt: skip

    rate = 1e-6
    gradient = jax.grad(lambda p: loss(collapse(p)))(params)
    moved = collapse(jax.tree.map(lambda p, g: p - rate * g, params, gradient))
    operator = preconditioner(collapse, params)
    change = operator.flatten(jax.tree.map(lambda a, b: (a - b) / rate, moved, collapse(params)))
    expected = -operator.multiply(operator.flatten(jax.grad(loss)(collapse(params))))
    np.testing.assert_allclose(change, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_plain_convolution_has_the_identity(x64: None) -> None:
    conv = collapse(rrrb())
    operator = preconditioner(lambda params: params, conv)
    found = lanczos_density(operator.multiply, operator.size)
    np.testing.assert_allclose(found.eigenvalues, 1)
    scaled = preconditioner(lambda p: jax.tree.map(lambda a: 3 * a, p), conv)
    diagonal = mean_diagonal(scaled, probes=1)
    assert diagonal['kernel'].shape == (3, 3, 2, 2)
    np.testing.assert_allclose(diagonal['bias'], 9)


def test_diagonal_by_tap(x64: None) -> None:
    params = rrrb(3)
    operator = preconditioner(collapse, params)
    expected = operator.unflatten(np.diag(dense(params)))['kernel'].mean((2, 3))
    found = mean_diagonal(operator, probes=400)['kernel'].mean((2, 3))
    np.testing.assert_allclose(found, expected, rtol=0.1)


def test_works_without_x64() -> None:
    assert preconditioner(collapse, rrrb()).multiply(np.ones(38)).dtype == np.float64


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(InputError, match='1 or more'):
        lanczos_density(lambda v: v, 3, steps=0)
