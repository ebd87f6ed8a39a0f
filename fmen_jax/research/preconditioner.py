"""Why re-parameterization changes training: the preconditioner that it puts before a gradient.

A block trains parameters p of a kernel K(p), where K is its `collapse`. One step of gradient
descent on p changes the kernel by dK = -lr J J^T dL/dK to first order, with J = dK/dp: the plain
kernel's gradient, multiplied by the matrix P = J J^T. P is symmetric and positive semidefinite, of
the size of the kernel and bias, and is applied here without being formed, by a vjp and a jvp of
`collapse`. A plain convolution has P = 1. An eigenvalue is the factor by which the learning rate of
one direction of kernel space is multiplied. Under Adam the same holds for the first-order change
that a given update of p makes, not for the update itself.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from fmen_jax.errors import InputError

Collapse = Callable[[Any], Any]
"""A differentiable function from the parameters of a linear block to its convolution, both trees
of arrays, such as `models.reparam.collapse`."""

Matvec = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Preconditioner:
    """P = J J^T of one block at its parameters, as an operator on flat float64 vectors [n].

    The order of the entries is that of `jax.flatten_util.ravel_pytree` of the convolution.
    """

    size: int
    """Number n of entries of kernel and bias."""
    multiply: Matvec
    """v [n] -> P v [n]."""
    example: Any
    """A convolution as `collapse` returns it."""

    def flatten(self, tree: Any) -> np.ndarray:
        """Return a tree like that of the convolution as a vector [n]."""
        return np.asarray(ravel_pytree(tree)[0])

    def unflatten(self, vector: np.ndarray) -> Any:
        """Return a vector [n] as a tree like that of the convolution, of NumPy arrays."""
        leaves, structure = jax.tree.flatten(self.example)
        parts = np.split(vector, np.cumsum([leaf.size for leaf in leaves])[:-1])
        shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        return jax.tree.unflatten(structure, shaped)


def preconditioner(collapse: Collapse, params: Any) -> Preconditioner:
    """Return the preconditioner of a block at its parameters.

    Args:
      collapse: the function from parameters to the convolution.
      params: the parameters, a tree of arrays; computed with in float64.
    """
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
        example = jax.tree.map(np.asarray, collapse(wide))
        unravel = ravel_pytree(jax.tree.map(jax.numpy.asarray, example))[1]

        @jax.jit
        def product(params: Any, vector: Any) -> Any:
            cotangent = jax.vjp(collapse, params)[1](unravel(vector))
            return ravel_pytree(jax.jvp(collapse, (params,), cotangent)[1])[0]

    def multiply(vector: np.ndarray) -> np.ndarray:
        with jax.enable_x64(True):
            return np.asarray(product(wide, np.asarray(vector, np.float64)))

    size = sum(leaf.size for leaf in jax.tree.leaves(example))
    return Preconditioner(size, multiply, example)


@dataclasses.dataclass(frozen=True)
class Density:
    """The spectrum of a symmetric matrix as a weighted sum of points."""

    eigenvalues: np.ndarray
    """Ritz values of all probes, ascending, [probes * steps]."""
    weights: np.ndarray
    """Share of the eigenvalues that each stands for; they sum to 1."""

    @property
    def mean(self) -> float:
        """Mean eigenvalue."""
        return float((self.eigenvalues * self.weights).sum())

    def quantile(self, share: float) -> float:
        """Return the value below which a share (0..1) of the eigenvalues lies."""
        place = np.searchsorted(self.weights.cumsum(), share)
        return float(self.eigenvalues[min(place, len(self.eigenvalues) - 1)])


def lanczos_density(
    multiply: Matvec, size: int, *, steps: int = 60, probes: int = 4, seed: int = 0
) -> Density:
    """Estimate the spectrum of a symmetric matrix by stochastic Lanczos quadrature.

    Ubaru, Chen and Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, 2017. The
    largest and the smallest Ritz value approach the extreme eigenvalues from inside; the weights of
    those between them estimate the density. With `size` steps the eigenvalues are exact.

    Args:
      multiply: v [n] -> A v [n] for symmetric A.
      size: n.
      steps: number of Lanczos steps for each probe; at most n are done.
      probes: number of random start vectors.
      seed: seed of the start vectors.

    Raises:
      InputError: If a number is below 1.
    """
    if min(size, steps, probes) < 1:
        raise InputError(
            f'size {size}, steps {steps}, probes {probes}: expected 1 or more of each.'
        )
    generator = np.random.default_rng(seed)
    values, weights = [], []
    for _ in range(probes):
        start = generator.choice([-1.0, 1.0], size)
        diagonal, beside = _tridiagonal(multiply, start / np.sqrt(size), min(steps, size))
        matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
        ritz, vectors = np.linalg.eigh(matrix)
        values.append(ritz)
        weights.append(np.square(vectors[0]) / probes)
    flat = np.concatenate(values)
    order = np.argsort(flat)
    return Density(flat[order], np.concatenate(weights)[order])


def _tridiagonal(multiply: Matvec, start: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the diagonal and the secondary diagonal of Lanczos' matrix; fewer if it ends early.

    Every new vector is made orthogonal to all before it, twice: without that, rounding makes copies
    of eigenvalues that were found.
    """
    basis = [start]
    diagonal: list[float] = []
    beside: list[float] = []
    scale = 0.0
    while True:
        next_vector = multiply(basis[-1])
        diagonal.append(float(next_vector @ basis[-1]))
        scale = max(scale, float(np.linalg.norm(next_vector)))
        known = np.stack(basis)
        for _ in range(2):
            next_vector = next_vector - known.T @ (known @ next_vector)
        length = float(np.linalg.norm(next_vector))
        if len(diagonal) == steps or length <= 1e-12 * scale:
            return np.array(diagonal), np.array(beside)
        beside.append(length)
        basis.append(next_vector / length)


def mean_diagonal(operator: Preconditioner, *, probes: int = 8, seed: int = 0) -> Any:
    """Estimate the diagonal of P: how much faster each entry learns from its own gradient.

    Bekas, Kokiopoulou and Saad, An estimator for the diagonal of a matrix, 2007: the mean of
    v * P v over vectors of random signs. One entry is noisy; a mean over many, such as that over
    the channels of one tap of a kernel, is not.

    Args:
      operator: the preconditioner.
      probes: number of random vectors.
      seed: seed of the vectors.

    Returns:
      A tree like that of the convolution.
    """
    generator = np.random.default_rng(seed)
    signs = generator.choice([-1.0, 1.0], (probes, operator.size))
    estimate = np.mean([sign * operator.multiply(sign) for sign in signs], axis=0)
    return operator.unflatten(estimate)
