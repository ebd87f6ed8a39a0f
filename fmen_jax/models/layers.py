"""Convolution, batch norm and pixel shuffle as PyTorch computes them.

Arrays are NHWC, float, images in 0..255. A layer computes in the dtype of its input: parameters are
cast to it, so one set of variables serves float64, float32 and bfloat16.
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from fmen_jax.errors import InputError
from fmen_jax.models.tpu_layout import Params, pack_kernel
from fmen_jax.runtime import onednn

Graph = Literal['expanded', 'collapsed', 'deploy']
"""How the network runs. 'expanded' and 'collapsed' are the train graph, with the same variables
and figures: every RRRB as its three convolutions, or folded to one on the way, at about the cost of
'deploy'. 'deploy' is the folded network, with variables of its own (`reparam.fold`)."""

KEPT = 'kept'
"""Name of what is worth keeping for the backward pass: convolutions and batch statistics, from
which all else is computed again at the cost of reading them (`StepConfig.remat`)."""


def uniform_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's default for weight and bias of a convolution: uniform in +-1/sqrt(fan_in)."""
    bound = fan_in**-0.5

    def init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def conv(
    x: Array, params: Params, *, padding: str = 'SAME', stride: int = 1, packed: int = 1
) -> Array:
    """Convolve an image and add a bias.

    Computed by XLA, or by oneDNN in a function that was compiled for it: see `onednn` in
    `runtime.compilation.jit`.

    Args:
      x: [N, H, W, C].
      params: `kernel` [kh, kw, C, F] and `bias` [F], cast to the dtype of x.
      padding: SAME, which pads with zeros, or VALID.
      stride: in pixels, of both axes.
      packed: p, if x is [N, H, W/p, p C] with p pixels of a row side by side in the channels, as
        `tpu_layout.pack` makes it. So is the result.

    Returns:
      [N, H, W, F], smaller with VALID or a stride.

    Raises:
      InputError: the channels of x are not those of the kernel.
    """
    if x.shape[3] != packed * params['kernel'].shape[2]:
        raise InputError(
            f'x has {x.shape[3]} channels; the kernel has {params["kernel"].shape[2]}'
            + (f', of {packed} packed pixels.' if packed > 1 else '.')
        )
    if packed > 1:
        params = pack_kernel(params, packed)
    kernel, bias = params['kernel'], params['bias']
    if onednn.enabled_for(x, kernel, padding=padding, stride=stride):
        return checkpoint_name(onednn.conv(x, kernel, bias), KEPT)
    y = lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (stride, stride),
        padding,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    # added in float32: its gradient is a sum over all pixels, which in bfloat16 stops growing
    wide = jnp.promote_types(x.dtype, jnp.float32)
    y = (y.astype(wide) + bias.astype(wide).reshape(1, 1, 1, -1)).astype(x.dtype)
    return checkpoint_name(y, KEPT)


class Conv(nn.Module):
    """A convolution whose parameters can be read without running it (`collapse` does).

    `padding` is SAME (zeros) or VALID; `packed` as for `conv`.
    """

    inputs: int
    features: int
    size: int = 3
    padding: str = 'SAME'
    stride: int = 1
    packed: int = 1

    def setup(self) -> None:
        init = uniform_fan_in(self.inputs * self.size**2)
        shape = (self.size, self.size, self.inputs, self.features)
        self.kernel = self.param('kernel', init, shape)
        self.bias = self.param('bias', init, (self.features,))

    @property
    def weights(self) -> Params:
        """`kernel` [size, size, inputs, features] and `bias` [features]."""
        return {'kernel': self.kernel, 'bias': self.bias}

    def __call__(self, x: Array, border: Array | None = None) -> Array:
        """Convolve; `border` [C] has been taken from x, and zeros of x stand for it."""
        weights = self.weights
        if border is not None:
            lost = jnp.einsum('yxio,i->o', self.kernel, border, precision='highest')
            weights = {'kernel': self.kernel, 'bias': self.bias + lost}
        return conv(x, weights, padding=self.padding, stride=self.stride, packed=self.packed)


class BatchNorm(nn.Module):
    """PyTorch's BatchNorm2d: new running = 0.9 old + 0.1 batch, eps 1e-5.

    The batch variance that normalises is biased, the one that enters the running value is not.
    Statistics are computed in float32 at least.
    """

    features: int
    momentum: float = 0.1
    epsilon: float = 1e-5
    packed: int = 1
    """Pixels of a row side by side in the channels of x (`tpu_layout.pack`)."""

    def setup(self) -> None:
        self.scale = self.param('scale', nn.initializers.ones, (self.features,))
        self.bias = self.param('bias', nn.initializers.zeros, (self.features,))
        stats = 'batch_stats'
        self.mean = self.variable(stats, 'mean', jnp.zeros, (self.features,))
        self.var = self.variable(stats, 'var', jnp.ones, (self.features,))
        self.num_batches_tracked = self.variable(
            stats, 'num_batches_tracked', jnp.zeros, (), jnp.int32
        )

    def __call__(self, x: Array, *, train: bool, centred: bool = False) -> tuple[Array, Array]:
        """Normalise [N, H, W, C]; in training with the statistics of the batch, which update.

        Returns the result and [C], what a zero input gives under the *running* statistics (in
        training: as they are after the update, and constant to the gradient). That is the value
        FMEN puts on the border before the next convolution. With `centred` the result is less by
        it, so that the border is of zeros.
        """
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        wide = x.astype(dtype)
        if train and not self.is_initializing():
            count = x.size // self.features
            if count == 1:
                raise InputError('batch norm has one value per channel; training needs more.')
            mean, var = self._statistics(wide)
            self._update(mean, var, count)
        else:
            mean, var = self.mean.value.astype(dtype), self.var.value.astype(dtype)
        gain, shift = self._affine(mean, var)
        running = lax.stop_gradient((self.mean.value, self.var.value))
        border = self._affine(*(value.astype(dtype) for value in running))[1]
        shift = shift - border if centred else shift
        gain, shift = (jnp.tile(value, self.packed).reshape(1, 1, 1, -1) for value in (gain, shift))
        return (wide * gain + shift).astype(x.dtype), border

    def _statistics(self, x: Array) -> tuple[Array, Array]:
        """Mean and biased variance [C] in one pass, which is one exchange between devices.

        About the running mean, which is near enough to the mean that nothing cancels.
        """
        pivot = lax.stop_gradient(self.mean.value).astype(x.dtype)
        away = x - jnp.tile(pivot, self.packed).reshape(1, 1, 1, -1)
        sums = jnp.stack([away.mean((0, 1, 2)), jnp.square(away).mean((0, 1, 2))])
        first, second = checkpoint_name(sums.reshape(2, -1, self.features).mean(1), KEPT)
        return pivot + first, jnp.maximum(second - jnp.square(first), 0)

    def _affine(self, mean: Array, var: Array) -> tuple[Array, Array]:
        gain = self.scale.astype(mean.dtype) * lax.rsqrt(var + self.epsilon)
        return gain, self.bias.astype(mean.dtype) - mean * gain

    def _update(self, mean: Array, var: Array, count: int) -> None:
        unbiased = var * (count / (count - 1))
        for running, batch in ((self.mean, mean), (self.var, unbiased)):
            new = running.value + self.momentum * (batch - running.value)
            running.value = new.astype(running.value.dtype)
        self.num_batches_tracked.value = self.num_batches_tracked.value + 1


@partial(jax.jit, static_argnames='slope')  # so that it stands in a traced program by its name
def leaky_relu(x: Array, slope: float) -> Array:
    """Return x where positive, else slope x; the derivative at 0 is `slope`, as in PyTorch."""
    return jnp.where(x > 0, x, slope * x)


def pad_border(x: Array, border: Array) -> Array:
    """[N, H, W, C] -> [N, H+2, W+2, C] with `border` [C] on the one-pixel rim."""
    inside = jnp.pad(jnp.ones((1, *x.shape[1:3], 1), bool), ((0, 0), (1, 1), (1, 1), (0, 0)))
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.where(inside, padded, border.reshape(1, 1, 1, -1))
