"""E-RFDN: AIM 2020 winner, NTIRE 2022 baseline, and baseline of FMEN's main comparison.

Liu et al., Residual Feature Distillation Network, ECCV Workshops 2020, arXiv 2009.11551. Images are
[N, H, W, 3], float, RGB in 0..255; submodules have the names used in the published
checkpoint.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from fmen_jax.images.pixel_shuffle import pixel_shuffle
from fmen_jax.models.esa import ESA, SLOPE
from fmen_jax.models.layers import Conv, Graph, leaky_relu


@dataclasses.dataclass(frozen=True)
class RFDNConfig:
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

    receptive_radius = None
    """None, because the attention depends on the whole image."""

    def build(self, graph: Graph = 'deploy') -> 'RFDN':
        """Return the network as a Flax module. It has only one graph; `graph` is ignored."""
        del graph
        return RFDN(self)


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
        kept = []
        for step in (1, 2, 3):
            kept.append(leaky_relu(getattr(self, f'c{step}_d')(x), SLOPE))
            x = leaky_relu(getattr(self, f'c{step}_r')(x) + x, SLOPE)
        kept.append(leaky_relu(self.c4(x), SLOPE))
        return self.esa(self.c5(jnp.concatenate(kept, axis=-1)))


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
