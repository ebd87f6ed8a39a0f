"""What the diagnostics have in common: the function that they examine, and its compilation."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fmen_jax.errors import InputError
from fmen_jax.runtime.compilation import jit

Apply = Callable[[Array], Array]
"""A network as a differentiable JAX function from LR images [N, H, W, C] to HR images
[N, s H, s W, C], both float. A `Network` is one; so is `lambda x: module.apply(variables, x)`.
Keep one function object for all calls: programs are compiled once for each object and shape."""


@lru_cache(maxsize=8)
def compiled_gradient(objective: Callable[..., Array], apply: Apply, *static: Any) -> Any:
    """Return the jitted (x, *arguments) -> gradient of `objective(apply, *static, x, *arguments)`.

    The objective returns a scalar; the gradient has the shape of x. The last few programs are kept,
    so that a diagnostic of many pictures compiles once.
    """

    def value(x: Array, *arguments: Any) -> Array:
        return objective(apply, *static, x, *arguments)

    return jit(jax.grad(value))


@lru_cache(maxsize=8)
def compiled(apply: Apply) -> Any:
    """Return `apply`, jitted; the last few programs are kept."""
    return jit(apply)


def float_dtype() -> Any:
    """Return the dtype that diagnostics compute in: float32, or float64 with jax_enable_x64."""
    return jnp.result_type(float)


def scale_of(apply: Apply, image: np.ndarray) -> int:
    """Return the scale s of a network, from the shape of its output for one image [H, W, C].

    Raises:
      InputError: If the image is not [H, W, C], or the output is not [1, s H, s W, C].
    """
    if image.ndim != 3:
        raise InputError(f'the image is {list(image.shape)}; expected one image [H, W, C].')
    x = jax.ShapeDtypeStruct((1, *image.shape), jnp.float32)
    found = jax.eval_shape(apply, x).shape
    scale = found[1] // image.shape[0] if len(found) == 4 else 0
    expected = (1, *(scale * size for size in image.shape[:2]), image.shape[2])
    if not scale or found != expected:
        raise InputError(
            f'the network makes {list(found)} of an image {[1, *image.shape]}; expected '
            '[1, s H, s W, C] for a whole number s.'
        )
    return scale
