"""Upscale one image with a network."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from fmen_jax.images.read import open_picture
from fmen_jax.inference.settings import InferenceSettings
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.network import Network


def upscale(network: Network, image: np.ndarray | str | Path, **settings: Any) -> np.ndarray:
    """Upscale an image and return it in its own dtype; large images are processed in tiles.

    The engine is cached for later calls with the same network and settings.

    Args:
      network: the network to upscale with, such as `fmen_jax.load('fmen_s_x4')`.
      image: array [H, W] or [H, W, C] with 1 to 4 channels, uint8, uint16 or float32 in 0..1; or
        the path of an image file.
      settings: fields of `InferenceSettings`: engine, dtype, tile, tile_pad, batch, self_ensemble.

    Returns:
      Array [scale H, scale W] or [scale H, scale W, C] of the same dtype.

    Raises:
      InputError: If a setting is out of its range, the array is of an unsupported shape or dtype,
        or the file cannot be read.
    """
    upscaler = _upscaler(network, InferenceSettings(**settings))
    if isinstance(image, str | Path):
        rows = open_picture(Path(image)).rows
        return upscaler(rows.read(0, rows.height))
    if getattr(image, 'ndim', 0) == 2:
        return upscaler(image[..., None])[..., 0]
    return upscaler(image)


@functools.lru_cache(maxsize=2)  # small, because an engine holds compiled programs
def _upscaler(network: Network, settings: InferenceSettings) -> Upscaler:
    return Upscaler(network, settings)
