"""Initial variables for training: PyTorch's distribution, or a start at bicubic upscaling.

Variables are drawn with NumPy from their shapes alone, because `module.init` runs every layer,
which takes ten seconds.
"""

from typing import Any, Literal

import jax
import numpy as np

from fmen_jax.errors import InputError
from fmen_jax.images.bicubic import cubic_kernel
from fmen_jax.models.layers import Graph, Params
from fmen_jax.models.protocol import NetworkConfig

Start = Literal['pytorch', 'bicubic']
"""Initialization scheme. 'pytorch' draws weights and biases of convolutions uniformly from
+-1/sqrt(fan_in), as published. 'bicubic' does the same, but sets head and tail so that these two
alone compute the bicubic upscale; training then starts at the PSNR of bicubic upscaling instead of
that of a black image."""

# Gain of the warm-up convolution. Without it, five attention maps of about 0.5 each would scale the
# trunk to 1/32. Gains up to 32 learn faster than a gain of 1 in the first steps.
_TRUNK_GAIN = 8.0
_MEAN = 127.5


def initial_variables(
    config: NetworkConfig, graph: Graph, *, seed: int = 0, start: Start = 'pytorch'
) -> Params:
    """Return the initial `params` and `batch_stats` of a network as float32 NumPy arrays.

    The same seed gives the same values.

    Raises:
      InputError: If the graph is 'collapsed' and would train with statistics that no batch has set.
    """
    if graph == 'collapsed' and config.freezes_statistics:
        raise InputError(
            f'the linear block of {config} has batch norms, whose statistics the collapsed graph '
            "does not change: train graph='expanded' first, and start the collapsed graph from its "
            'train_weights.safetensors with init_from.'
        )
    size = config.min_size
    image = jax.ShapeDtypeStruct((1, size, size, config.n_colors), np.float32)
    shapes = jax.eval_shape(config.build(graph).init, jax.random.key(0), image)
    generator = np.random.Generator(np.random.Philox(seed))
    variables = draw(shapes, generator)
    if graph != 'deploy':
        variables['params'] = config.initialize(variables['params'], generator)
    if start == 'bicubic':
        _make_bicubic(variables['params'], config)
    return variables


def resized_tail(tail: Params, before: int, after: int) -> Params:
    """Return the tail of a trained network resized to another scale.

    Each new sub-pixel is the mean over its area.

    Args:
      tail: `kernel` [3, 3, n, C before^2] and `bias` [C before^2], in PyTorch's order.
      before: the scale of the trained network.
      after: the scale of the new tail.
    """
    edges = [np.arange(scale + 1) / scale for scale in (before, after)]
    low = np.maximum(edges[1][:-1, None], edges[0][None, :-1])
    high = np.minimum(edges[1][1:, None], edges[0][None, 1:])
    share = np.maximum(high - low, 0) * after  # [after, before], rows sum to 1

    def resized(a: np.ndarray) -> np.ndarray:
        parts = a.reshape(*a.shape[:-1], -1, before, before)
        return np.float32(np.einsum('...yx,iy,jx->...ij', parts, share, share)).reshape(
            *a.shape[:-1], -1
        )

    return {name: resized(value) for name, value in tail.items()}


def draw(shapes: Any, generator: np.random.Generator) -> Params:
    """Return variables of the given shapes in PyTorch's default distribution.

    A dict with a `kernel` is a convolution; `scale` and `var` are 1, and everything else is 0.
    """
    drawn: Params = {}
    for name in sorted(shapes):
        shape = shapes[name]
        if isinstance(shape, dict):
            drawn[name] = draw(shape, generator)
        elif 'kernel' in shapes:
            bound = float(np.prod(shapes['kernel'].shape[:3])) ** -0.5
            drawn[name] = generator.uniform(-bound, bound, shape.shape).astype(shape.dtype)
        else:  # batch norm
            value = 1 if name in ('scale', 'var') else 0
            drawn[name] = np.full(shape.shape, value, shape.dtype)
    return drawn


def _make_bicubic(params: Params, config: NetworkConfig) -> None:
    """Set the tail in place so that tail(head(x)) is the bicubic upscale of x.

    Two 3x3 convolutions cover 5x5 pixels, of which bicubic interpolation uses 4x4. With at least 27
    features, the minimum-norm tail reproduces it exactly, except near the border, which is padded
    with zeros.
    """
    head, scale, colors = params['head'], config.scale, config.n_colors
    head['bias'] = -_MEAN * head['kernel'].sum((0, 1, 2))  # subtracts the mean of an image
    params['warmup_0']['kernel'] = params['warmup_0']['kernel'] * np.float32(_TRUNK_GAIN)
    seen = np.zeros((5, 5, colors, 3, 3, head['kernel'].shape[3]))
    for y in range(3):
        for x in range(3):
            seen[y : y + 3, x : x + 3, :, y, x] = head['kernel']
    taps = np.stack(
        [cubic_kernel((i + 0.5) / scale - 0.5 - np.arange(-2, 3)) for i in range(scale)]
    )
    wanted = np.einsum('iy,jx,cd->yxcdij', taps, taps, np.eye(colors))
    inputs, outputs = 25 * colors, colors * scale**2
    kernel = np.linalg.lstsq(seen.reshape(inputs, -1), wanted.reshape(inputs, outputs))[0]
    kernel = kernel.reshape(3, 3, -1, outputs)
    bias = -np.einsum('yxfo,f->o', kernel, head['bias'])
    params['tail_0'] = {'kernel': np.float32(kernel), 'bias': np.float32(bias)}
