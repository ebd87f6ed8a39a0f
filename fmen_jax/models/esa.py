"""Enhanced spatial attention (ESA), used by E-RFDN and RLFN.

Arrays are [N, H, W, C]. The attention is computed at about a sixth of the size and resized to the
whole image, so an output pixel depends on the whole image: tiling is not exact for these networks.
"""

import flax.linen as nn
import jax
from jax import Array

from fmen_jax.errors import InputError
from fmen_jax.models.layers import Conv

SLOPE = 0.05
"""Negative slope of the LeakyReLUs in both networks."""

MIN_SIZE = 15
"""Minimum height and width in pixels, required by the strided convolution and the pooling."""


class ESA(nn.Module):
    """Enhanced spatial attention (Liu et al., RFANet, CVPR 2020).

        x -+- conv1 1x1 -+- conv2 /2 - pool 7/3 - 3x3 ... - resize -(+)- conv4 1x1 - sigmoid -(*)-
           |             +---------- conv_f 1x1 --------------------+                          |
           +-----------------------------------------------------------------------------------+

    The dots stand for further convs: E-RFDN has three 3x3 convs in total with ReLUs in between
    (conv_max, conv3, conv3_), RLFN has only one (conv3), selected by `short`. The attention map
    is sown as `attention` in `intermediates`.
    """

    features: int
    mid_feats: int
    short: bool

    def setup(self) -> None:
        n, f = self.features, self.mid_feats
        self.conv1 = Conv(n, f, size=1)
        self.conv_f = Conv(f, f, size=1)
        self.conv2 = Conv(f, f, padding='VALID', stride=2)
        self.conv3 = Conv(f, f)
        self.conv4 = Conv(f, n, size=1)
        if not self.short:
            self.conv_max, self.conv3_ = Conv(f, f), Conv(f, f)

    def __call__(self, x: Array) -> Array:
        if any(size < MIN_SIZE for size in x.shape[1:3]):
            raise InputError(
                f'the image is {x.shape[2]}x{x.shape[1]} pixels; networks with enhanced spatial '
                f'attention, such as E-RFDN and RLFN, need {MIN_SIZE} or more in width and height: '
                'enlarge its canvas, or choose an FMEN, which runs at any size.'
            )
        c1 = self.conv1(x)
        c3 = nn.max_pool(self.conv2(c1), (7, 7), strides=(3, 3))
        if self.short:
            c3 = self.conv3(c3)
        else:
            c3 = self.conv3_(jax.nn.relu(self.conv3(jax.nn.relu(self.conv_max(c3)))))
        c3 = jax.image.resize(c3, c1.shape, 'linear', antialias=False)
        attention = jax.nn.sigmoid(self.conv4(c3 + self.conv_f(c1)))
        self.sow('intermediates', 'attention', attention)
        return attention * x
