"""Convolution, batch norm, LeakyReLU and padding with the semantics of PyTorch.

Arrays are NHWC, float, images in 0..255. A layer computes in the dtype of its input: parameters are
cast to it, so the same variables can be used in float64, float32 and bfloat16.
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
from fmen_jax.runtime import onednn, onednn_calls

Graph = Literal['expanded', 'collapsed', 'deploy']
"""How the network is computed. 'expanded' and 'collapsed' are two forms of the train graph with the
same variables and results: 'expanded' computes each RRRB as three convolutions, 'collapsed' folds
it into one convolution during the forward pass, at about the cost of 'deploy'. 'deploy' is the
folded network, which has different variables (`reparam.fold`)."""

SAVED = 'saved_for_backward'
"""Checkpoint name of the intermediate results worth storing for the backward pass: convolutions and
batch statistics. All others can be recomputed from these at the cost of reading them
(`StepConfig.remat`)."""


def uniform_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """Return PyTorch's default initializer of a convolution: uniform in +-1/sqrt(fan_in)."""
    bound = fan_in**-0.5

    def init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def conv(
    x: Array, params: Params, *, padding: str = 'SAME', stride: int = 1, packed: int = 1
) -> Array:
    """Convolve images and add a bias.

    The convolution is computed by XLA, or by oneDNN inside a function compiled for it (argument
    `onednn` of `runtime.compilation.jit`).

    Args:
      x: [N, H, W, C].
      params: `kernel` [kh, kw, C, F] and `bias` [F], cast to the dtype of x.
      padding: SAME, which pads with zeros, or VALID.
      stride: stride along both axes in pixels.
      packed: number p of adjacent pixels of a row that are packed into the channels of x and of the
        result. x is then [N, H, W/p, p C], as returned by `tpu_layout.pack`.

    Returns:
      [N, H, W, F]; H and W are smaller with VALID or a stride.

    Raises:
      InputError: If the number of channels of x does not match the kernel.
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
        return checkpoint_name(onednn_calls.conv(x, kernel, bias), SAVED)
    y = lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (stride, stride),
        padding,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    # The bias is added in float32: its gradient is a sum over all pixels, and a sum in bfloat16
    # stops growing.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    y = (y.astype(wide) + bias.astype(wide).reshape(1, 1, 1, -1)).astype(x.dtype)
    return checkpoint_name(y, SAVED)


class Conv(nn.Module):
    """Convolution whose parameters can be read without running it, as needed for `collapse`.

    `padding` is SAME (zeros) or VALID; `packed` is as in `conv`.
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
        """Parameters: `kernel` [size, size, inputs, features] and `bias` [features]."""
        return {'kernel': self.kernel, 'bias': self.bias}

    def __call__(self, x: Array, border: Array | None = None) -> Array:
        """Convolve x + `border`, given x, the input after subtraction of `border` [C].

        The response to `border` is added to the bias, so zero padding of x stands for a padding
        with `border`.
        """
        weights = self.weights
        if border is not None:
            lost = jnp.einsum('yxio,i->o', self.kernel, border, precision='highest')
            weights = {'kernel': self.kernel, 'bias': self.bias + lost}
        return conv(x, weights, padding=self.padding, stride=self.stride, packed=self.packed)


class BatchNorm(nn.Module):
    """Batch norm as PyTorch's BatchNorm2d: new running = 0.9 old + 0.1 batch, eps 1e-5.

    The batch variance is biased when used to normalize and unbiased when used to update the running
    variance. Statistics are computed in float32 or wider.
    """

    features: int
    momentum: float = 0.1
    epsilon: float = 1e-5
    packed: int = 1
    """Number of adjacent pixels of a row packed into the channels of x (`tpu_layout.pack`)."""

    def setup(self) -> None:
        self.scale = self.param('scale', nn.initializers.ones, (self.features,))
        self.bias = self.param('bias', nn.initializers.zeros, (self.features,))
        stats = 'batch_stats'
        self.mean = self.variable(stats, 'mean', jnp.zeros, (self.features,))
        self.var = self.variable(stats, 'var', jnp.ones, (self.features,))
        self.num_batches_tracked = self.variable(
            stats, 'num_batches_tracked', jnp.zeros, (), jnp.int32
        )

    def __call__(self, x: Array, *, train: bool, centered: bool = False) -> tuple[Array, Array]:
        """Normalize [N, H, W, C] with the running statistics, or those of the batch in training.

        Training also updates the running statistics.

        Returns the result and the border value [C], which is the output for a zero input under the
        *running* statistics (in training after their update, and treated as constants in the
        gradient). FMEN pads with this value before the next convolution. If `centered` is true, the
        border value is subtracted from the result, so that the padding is zero.

        Raises:
          InputError: In training, if there is only one value per channel.
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
        shift = shift - border if centered else shift
        gain, shift = (jnp.tile(value, self.packed).reshape(1, 1, 1, -1) for value in (gain, shift))
        return (wide * gain + shift).astype(x.dtype), border

    def _statistics(self, x: Array) -> tuple[Array, Array]:
        """Return mean and biased variance [C], computed in one pass.

        One pass means only one exchange between devices. The moments are taken about the running
        mean, which is close enough to the batch mean to avoid cancellation.
        """
        pivot = lax.stop_gradient(self.mean.value).astype(x.dtype)
        away = x - jnp.tile(pivot, self.packed).reshape(1, 1, 1, -1)
        sums = jnp.stack([away.mean((0, 1, 2)), jnp.square(away).mean((0, 1, 2))])
        first, second = checkpoint_name(sums.reshape(2, -1, self.features).mean(1), SAVED)
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


@partial(jax.jit, static_argnames='slope')  # so that it appears by name in a traced program
def leaky_relu(x: Array, slope: float) -> Array:
    """Return x where positive, else slope x; the derivative at 0 is `slope`, as in PyTorch.

    In bfloat16, only the result is rounded.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.where(wide > 0, wide, slope * wide).astype(x.dtype)


def gate(y: Array, x: Array) -> tuple[Array, Array]:
    """Return sigmoid(y) x and sigmoid(y), an attention map in 0..1.

    In bfloat16, the attention map is float32 and only the product is rounded, which is also faster
    on a CPU: XLA computes in float32 there, and would round after every operation.
    """
    attention = jax.nn.sigmoid(y.astype(jnp.promote_types(y.dtype, jnp.float32)))
    return (attention * x).astype(x.dtype), attention


def pad_border(x: Array, border: Array) -> Array:
    """Pad [N, H, W, C] by one pixel on each side with `border` [C]; returns [N, H+2, W+2, C]."""
    inside = jnp.pad(jnp.ones((1, *x.shape[1:3], 1), bool), ((0, 0), (1, 1), (1, 1), (0, 0)))
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.where(inside, padded, border.reshape(1, 1, 1, -1))
