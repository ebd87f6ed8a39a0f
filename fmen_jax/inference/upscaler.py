"""Pixels in, pixels out: a network on 8-bit pictures."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from fmen_jax.compiler import jit
from fmen_jax.errors import InputError

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
        self._function = jit(lambda variables, x: to_uint8(module.apply(variables, x)))
        self._compiled: dict[tuple[int, ...], Any] = {}

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """[H, W, 3] uint8 -> [s H, s W, 3] uint8.

        Raises:
          InputError: not such an array, or too large for the memory at hand.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3:
            found = f'{pixels.dtype}{list(pixels.shape)}'
            raise InputError(f'pixels are {found}; expected uint8 [H, W, 3].')
        x = pixels[None].astype(np.float32)
        self.network.check(x.shape, x.dtype)
        if x.shape not in self._compiled:
            self._compiled[x.shape] = self._compile(x)
        return np.asarray(self._compiled[x.shape](self.network.variables, x))[0]

    def _compile(self, x: np.ndarray) -> Any:
        with jax.default_matmul_precision(self.network.precision):
            compiled = self._function.lower(self.network.variables, x).compile()
        needed = compiled.memory_analysis().temp_size_in_bytes
        available = psutil.virtual_memory().available
        if jax.default_backend() == 'cpu' and needed > available:
            height, width = x.shape[1:3]
            raise InputError(
                f'a picture of {width}x{height} needs {needed / 2**30:.1f} GiB of memory and '
                f'{available / 2**30:.1f} GiB are free: cut it into smaller pieces.'
            )
        return compiled
