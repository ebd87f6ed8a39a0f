"""Pixels in, pixels out: a network on 8-bit pictures."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from fmen_jax.compiler import jit
from fmen_jax.errors import InputError
from fmen_jax.models.layers import Params

if TYPE_CHECKING:
    from fmen_jax.pretrained import Network


def to_uint8(y: Any) -> jax.Array:
    """Round to nearest and clamp to 0..255, once, at the very end."""
    return jnp.clip(jnp.rint(y), 0, 255).astype(jnp.uint8)


class Upscaler:
    """Upscales 8-bit pictures with a network, folded first if it is a train graph.

    The whole picture goes through at once; each size is compiled once.
    """

    def __init__(self, network: 'Network') -> None:
        self.network = network.fold()
        self.scale = network.config.scale
        module = self.network.module

        def function(variables: Params, x: Any, gray: bool) -> jax.Array:
            y: Any = module.apply(variables, x)
            return to_uint8(y.mean(-1, keepdims=True) if gray else y)

        self._function = jit(function, static_argnames='gray')
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(self, pixels: np.ndarray, *, gray: bool = False) -> np.ndarray:
        """[H, W, 3] uint8 -> [s H, s W, 3] uint8.

        With `gray` the output's channels are averaged, before they are rounded: [s H, s W, 1].

        Raises:
          InputError: not such an array, or too large for the memory at hand.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3:
            found = f'{pixels.dtype}{list(pixels.shape)}'
            raise InputError(f'pixels are {found}; expected uint8 [H, W, 3].')
        x = pixels[None].astype(np.float32)
        self.network.check(x.shape, x.dtype)
        key = (x.shape, gray)
        try:
            if key not in self._compiled:
                self._compiled[key] = self._compile(x, gray)
            return np.asarray(self._compiled[key](self.network.variables, x))[0]
        except jax.errors.JaxRuntimeError as error:
            if 'RESOURCE_EXHAUSTED' not in str(error):
                raise
            raise InputError(
                f'a picture of {x.shape[2]}x{x.shape[1]} does not fit into the memory of the '
                'device: cut it into smaller pieces.'
            ) from error

    def _compile(self, x: np.ndarray, gray: bool) -> Any:
        with jax.default_matmul_precision(self.network.precision):
            compiled = self._function.lower(self.network.variables, x, gray=gray).compile()
        memory = compiled.memory_analysis()
        needed = memory.temp_size_in_bytes + memory.output_size_in_bytes
        available = psutil.virtual_memory().available
        if jax.default_backend() == 'cpu' and needed > available:
            height, width = x.shape[1:3]
            raise InputError(
                f'a picture of {width}x{height} needs {needed / 2**30:.1f} GiB of memory and '
                f'{available / 2**30:.1f} GiB are free: cut it into smaller pieces.'
            )
        return compiled
