"""How large the windows of an image may be for the available memory."""

from typing import Any

import jax

from fmen_jax.inference.tiling import Limits
from fmen_jax.network import Network
from fmen_jax.runtime.memory import available_memory


def limits(network: Network, batch: int) -> Limits:
    """Return how many LR pixels a window and a row of windows may have.

    Windows use a third of the free memory of the device that computes. A row of windows, of which
    the input and the output are in the memory of the host, uses a sixth of that; it is counted as
    RGB with alpha in 16 bit, so that the limit holds for nearly all images.
    """
    config: Any = network.config
    host = device = available_memory()
    if jax.default_backend() != 'cpu':
        device = (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit', 2**33)
    # In float32: about five live feature maps (ten in the other networks), the output of the tail
    # and its pixel shuffle.
    maps = 5 if config.receptive_radius else 10
    area = config.scale**2
    in_window = 4 * (maps * getattr(config, 'n_feats', 50) + 3 * 3 * area)
    in_band = 2 * 4 * (2 + area)
    return Limits(
        window=max(int(device / 3 / in_window / batch), 1), band=max(int(host / 6 / in_band), 1)
    )
