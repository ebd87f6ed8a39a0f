"""FMEN, an efficient super-resolution network, in JAX and Flax.

    import fmen_jax
    import numpy as np

    net = fmen_jax.load('fmen_s_x4')  # weights in the package, or the path of a checkpoint
    y = net(np.zeros((1, 48, 64, 3), np.float32))  # [N, H, W, 3] -> [N, 4 H, 4 W, 3]
    image = fmen_jax.upscale(net, 'docs/astronaut.png')  # any picture, in tiles if it is large

Images are NHWC, float, RGB in 0..255 everywhere.
"""

from typing import TYPE_CHECKING, Any

__version__ = '0.1.0'

__all__ = ['InputError', 'Network', 'load', 'models', 'porting', 'upscale']

if TYPE_CHECKING:
    from fmen_jax import models, porting
    from fmen_jax.errors import InputError
    from fmen_jax.inference.upscale import upscale
    from fmen_jax.network import Network, load

_HOMES = {
    'InputError': 'errors',
    'Network': 'network',
    'load': 'network',
    'upscale': 'inference.upscale',
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: JAX alone takes half a second."""
    import importlib

    if name in ('models', 'porting'):
        return importlib.import_module(f'{__name__}.{name}')
    if name in _HOMES:
        return getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
