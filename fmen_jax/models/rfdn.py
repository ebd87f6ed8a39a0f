"""E-RFDN: AIM 2020 winner, NTIRE 2022 baseline, and baseline of FMEN's main comparison.

Liu et al., Residual Feature Distillation Network, ECCV Workshops 2020, arXiv 2009.11551. Images are
[N, H, W, 3], float, RGB in 0..255; submodules have the names used in the published
checkpoint.
"""

import dataclasses
import re
from typing import ClassVar, Self

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from fmen_jax.images.pixel_shuffle import pixel_shuffle
from fmen_jax.models.esa import ESA, MIN_SIZE, SLOPE
from fmen_jax.models.layers import Conv, Graph, leaky_relu
from fmen_jax.models.protocol import NetworkConfig, Shapes
from fmen_jax.models.recognition import common_size, count_blocks, scale_of


@dataclasses.dataclass(frozen=True)
class RFDNConfig(NetworkConfig):
    """Hyper-parameters of an RFDN; the defaults are those of E-RFDN."""

    scale: int = 4
    """Upscaling factor."""
    n_feats: int = 50
    """Number of channels of the backbone. Half as many are distilled at each step, and a quarter as
    many are used in the attention."""
    blocks: int = 4
    """Number of residual feature distillation blocks."""
    n_colors: int = 3
    """Number of channels of the image."""

    key_styles: ClassVar = {'ntire2022': {}}  # ofsoundof/NTIRE2022_ESR
    key_order: ClassVar = (
        *('fea_conv', 'B', 'c', 'LR_conv', 'upsampler'),
        *('c1_d', 'c1_r', 'c2_d', 'c2_r', 'c3_d', 'c3_r', 'c4', 'c5', 'esa'),
        *('conv1', 'conv_f', 'conv_max', 'conv2', 'conv3', 'conv3_', 'conv4'),
    )
    example_keys: ClassVar = 'fea_conv.weight, B1.c1_d.weight, upsampler.0.weight'
    min_size: ClassVar = MIN_SIZE

    def __post_init__(self) -> None:
        self.check_fields({'n_feats': 4})

    def build(self, graph: Graph = 'deploy') -> 'RFDN':
        """Return the network as a Flax module. It has only one graph; `graph` is ignored."""
        del graph
        return RFDN(self)

    @classmethod
    def recognize(cls, shapes: Shapes) -> tuple[Self, Graph] | None:
        """Return the configuration and graph of a state dict; None if it is of another network."""
        if not any(re.match(r'B\d+\.c\d_d\.', key) for key in shapes):
            return None
        n_feats = common_size(shapes, r'(fea_conv|LR_conv|B\d+\.c5)\.bias')
        n_colors = common_size(shapes, r'fea_conv\.weight', 1) or cls.n_colors
        scale = scale_of(shapes, 'upsampler.0', n_colors)
        if not (n_feats and scale):
            return None
        blocks = max(count_blocks(shapes, 'B', start=1), 1)
        return cls(scale, n_feats, blocks, n_colors), 'deploy'


class RFDB(nn.Module):
    """Residual feature distillation block.

    x -+- c1_r -(+x)- act -+- c2_r -(+)- act -+- c3_r -(+)- act - c4 - act -+
       +- c1_d - act -+    +- c2_d - act -+   +- c3_d - act -+              |
                      +-------------------+------------------+-- concat ----+- c5 1x1 - ESA
    """

    features: int

    def setup(self) -> None:
        n, distilled = self.features, self.features // 2
        for step in (1, 2, 3):
            setattr(self, f'c{step}_d', Conv(n, distilled, size=1))
            setattr(self, f'c{step}_r', Conv(n, n))
        self.c4 = Conv(n, distilled)
        self.c5 = Conv(4 * distilled, n, size=1)
        self.esa = ESA(n, n // 4, short=False)

    def __call__(self, x: Array) -> Array:
        distilled = []
        for step in (1, 2, 3):
            distilled.append(leaky_relu(getattr(self, f'c{step}_d')(x), SLOPE))
            x = leaky_relu(getattr(self, f'c{step}_r')(x) + x, SLOPE)
        distilled.append(leaky_relu(self.c4(x), SLOPE))
        return self.esa(self.c5(jnp.concatenate(distilled, axis=-1)))


class RFDN(nn.Module):
    """The RFDN network: successive blocks, concatenated outputs, a long skip, a pixel shuffle."""

    config: RFDNConfig

    def setup(self) -> None:
        c, n = self.config, self.config.n_feats
        self.fea_conv = Conv(c.n_colors, n)
        for i in range(c.blocks):
            setattr(self, f'B{i + 1}', RFDB(n))
        self.c = [Conv(c.blocks * n, n, size=1)]
        self.LR_conv = Conv(n, n)
        self.upsampler = [Conv(n, c.n_colors * c.scale**2)]

    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Upscale [N, H, W, 3] in 0..255 to [N, scale H, scale W, 3], not clamped.

        H and W must be at least 15.

        Raises:
          InputError: If H or W is less than 15.
        """
        del train  # no layer behaves differently in training
        first = h = self.fea_conv(x)
        outputs = []
        for i in range(self.config.blocks):
            h = getattr(self, f'B{i + 1}')(h)
            outputs.append(h)
        joined = leaky_relu(self.c[0](jnp.concatenate(outputs, axis=-1)), SLOPE)
        return pixel_shuffle(self.upsampler[0](self.LR_conv(joined) + first), self.config.scale)
