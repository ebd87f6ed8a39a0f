"""Upscale one picture with a network."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from fmen_jax.images.read import open_picture
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.network import Network


def upscale(network: Network, image: np.ndarray | str | Path, **settings: Any) -> np.ndarray:
    """Upscale a picture and return it in its own dtype; large pictures are processed in tiles.

    The engine is cached for later calls with the same network and settings.

    Args:
      network: the network to upscale with, such as `fmen_jax.load('fmen_s_x4')`.
      image: array [H, W] or [H, W, C] with 1 to 4 channels, uint8, uint16 or float32 in 0..1; or
        the path of a picture file.
      settings: keyword arguments of `Upscaler`: engine, tile, self_ensemble, ...

    Returns:
      Array [scale H, scale W] or [scale H, scale W, C] of the same dtype.

    Raises:
      InputError: the array is of an unsupported shape or dtype, or the file does not exist.
    """
    upscaler = _upscaler(network, tuple(sorted(settings.items())))
    if isinstance(image, str | Path):
        rows = open_picture(Path(image)).rows
        return upscaler(rows.read(0, rows.height))
    if getattr(image, 'ndim', 0) == 2:
        return upscaler(image[..., None])[..., 0]
    return upscaler(image)


@functools.lru_cache(maxsize=2)  # small, because an engine holds compiled programs
def _upscaler(network: Network, settings: tuple[tuple[str, Any], ...]) -> Upscaler:
    return Upscaler(network, **dict(settings))
