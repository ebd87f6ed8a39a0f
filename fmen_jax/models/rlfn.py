"""RLFN: the runtime winner of the NTIRE 2022 challenge on efficient super-resolution.

Kong et al., Residual Local Feature Network, CVPR Workshops 2022, arXiv 2205.07514. Images are
[N, H, W, 3], float, RGB in 0..255; submodules have the names used in the published
checkpoint.
"""

import dataclasses
import re
from typing import ClassVar, Self

import flax.linen as nn
from jax import Array

from fmen_jax.images.pixel_shuffle import pixel_shuffle
from fmen_jax.models.esa import ESA, MIN_SIZE, SLOPE
from fmen_jax.models.layers import Conv, Graph, leaky_relu
from fmen_jax.models.protocol import NetworkConfig, Shapes
from fmen_jax.models.recognition import common_size, count_blocks, scale_of


@dataclasses.dataclass(frozen=True)
class RLFNConfig(NetworkConfig):
    """Hyper-parameters of an RLFN; the defaults are those of the challenge."""

    scale: int = 4
    """Upscaling factor."""
    n_feats: int = 46
    """Number of channels of the backbone."""
    mid_feats: int = 48
    """Number of channels inside the blocks."""
    attention_feats: int = 16
    """Number of channels inside the attention."""
    blocks: int = 4
    """Number of residual local feature blocks."""
    n_colors: int = 3
    """Number of channels of the image."""

    key_styles: ClassVar = {'ntire2022': {}}  # ofsoundof/NTIRE2022_ESR
    key_order: ClassVar = (
        *('fea_conv', 'B', 'LR_conv', 'upsampler'),
        *('c1_r', 'c2_r', 'c3_r', 'c5', 'esa'),
        *('conv1', 'conv_f', 'conv2', 'conv3', 'conv4'),
    )
    example_keys: ClassVar = 'fea_conv.weight, B1.c1_r.weight, upsampler.0.weight'
    min_size: ClassVar = MIN_SIZE

    def __post_init__(self) -> None:
        self.check_fields({})

    def build(self, graph: Graph = 'deploy') -> 'RLFN':
        """Return the network as a Flax module. It has only one graph; `graph` is ignored."""
        del graph
        return RLFN(self)

    @classmethod
    def recognize(cls, shapes: Shapes) -> tuple[Self, Graph] | None:
        """Return the configuration and graph of a state dict; None if it is of another network."""
        if any(re.match(r'B\d+\.c\d_d\.', key) for key in shapes):
            return None  # distillation: E-RFDN
        n_feats = common_size(shapes, r'(fea_conv|LR_conv|B\d+\.c5)\.bias')
        n_colors = common_size(shapes, r'fea_conv\.weight', 1) or cls.n_colors
        scale = scale_of(shapes, 'upsampler.0', n_colors)
        if not (n_feats and scale):
            return None
        config = cls(
            scale=scale,
            n_feats=n_feats,
            mid_feats=common_size(shapes, r'B\d+\.c[12]_r\.bias') or cls.mid_feats,
            attention_feats=common_size(shapes, r'B\d+\.esa\.conv_f\.bias') or cls.attention_feats,
            blocks=max(count_blocks(shapes, 'B', start=1), 1),
            n_colors=n_colors,
        )
        return config, 'deploy'


class RLFB(nn.Module):
    """Residual local feature block.

    x -+- c1_r - act - c2_r - act - c3_r - act -(+)- c5 1x1 - ESA
       +-----------------------------------------+
    """

    config: RLFNConfig

    def setup(self) -> None:
        n, m = self.config.n_feats, self.config.mid_feats
        self.c1_r, self.c2_r, self.c3_r = Conv(n, m), Conv(m, m), Conv(m, n)
        self.c5 = Conv(n, n, size=1)
        self.esa = ESA(n, self.config.attention_feats, short=True)

    def __call__(self, x: Array) -> Array:
        h = x
        for conv in (self.c1_r, self.c2_r, self.c3_r):
            h = leaky_relu(conv(h), SLOPE)
        return self.esa(self.c5(h + x))


class RLFN(nn.Module):
    """The RLFN network: successive blocks, a long skip and a pixel shuffle."""

    config: RLFNConfig

    def setup(self) -> None:
        c, n = self.config, self.config.n_feats
        self.fea_conv = Conv(c.n_colors, n)
        for i in range(c.blocks):
            setattr(self, f'B{i + 1}', RLFB(c))
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
        for i in range(self.config.blocks):
            h = getattr(self, f'B{i + 1}')(h)
        return pixel_shuffle(self.upsampler[0](self.LR_conv(h) + first), self.config.scale)
