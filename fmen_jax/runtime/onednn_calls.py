"""Convolutions and matrix products of oneDNN, called from XLA's programs for x86 CPUs.

The wheels of jaxlib contain oneDNN and the functions that call it, but not the compiler pass that
would choose it, so the calls are written here. Their format is private to XLA; `onednn_self_test`
finds out whether a jaxlib and a CPU support it.

Arrays are [N, H, W, C], float32 or bfloat16.
"""

import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


@jax.custom_vjp
def conv(x: Array, kernel: Array, bias: Array) -> Array:
    """Convolve with zeros around the image, in the dtype of x.

    Has a reverse-mode derivative, but no forward-mode one.

    Args:
      x: [N, H, W, C], float32 or bfloat16.
      kernel: [k, k, C, F], k odd. Its gradient is summed in float32 and has its dtype.
      bias: [F].

    Returns:
      [N, H, W, F].
    """
    return _conv_call(x, kernel.astype(x.dtype), bias.astype(x.dtype))


def _forward(x: Array, kernel: Array, bias: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return conv(x, kernel, bias), (x, kernel, bias)


def _backward(saved: tuple[Array, Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    x, kernel, bias = saved
    # The kernel's gradient begins with a copy of x in another order, which XLA would make, and
    # hold, from the moment there is an x. This lets it wait for the gradient, with a condition that
    # is never true, which XLA does not know; optimization barriers are gone before it schedules.
    first = gradient[0, 0, 0, 0]
    x = jnp.where(jnp.isnan(first) & jnp.isfinite(first), 0, x)
    to_x = _conv_call(gradient, kernel[::-1, ::-1].swapaxes(2, 3).astype(x.dtype))
    if x.dtype == jnp.bfloat16:
        to_kernel = kernel_gradient(x, gradient, kernel.shape[0], matmul=matmul)
        pixels = gradient.reshape(-1, gradient.shape[3])
        to_bias = matmul(jnp.ones((len(pixels), 1), x.dtype), pixels)[0]
    else:  # XLA's are faster than matrix products in float32, and oneDNN's own cannot be called
        to_kernel = _xla_kernel_gradient(x, gradient, kernel)
        to_bias = gradient.sum((0, 1, 2))
    return to_x, to_kernel.astype(kernel.dtype), to_bias.astype(bias.dtype)


conv.defvjp(_forward, _backward)


def kernel_gradient(
    x: Array, gradient: Array, size: int, *, matmul: Callable[[Array, Array], Array]
) -> Array:
    """Gradient of a zero-padded convolution's kernel, as one matrix product.

    dK[r, c] = sum over (n, y, x) of X[n, y, x + c - h]^T G[n, y - r + h, x], with h = size // 2 and
    zeros outside the image: X shifted by columns times G shifted by rows.

    Args:
      x: [N, H, W, C], the input of the convolution.
      gradient: [N, H, W, F], with respect to its output.
      size: rows and columns of the kernel, odd.
      matmul: a [P, M], b [P, N] -> a^T b [M, N].

    Returns:
      [size, size, C, F].
    """
    half, (height, width) = size // 2, x.shape[1:3]
    wide = jnp.pad(x, ((0, 0), (0, 0), (half, half), (0, 0)))
    high = jnp.pad(gradient, ((0, 0), (half, half), (0, 0), (0, 0)))
    # stacked on an axis of their own: XLA's concatenation of channels is several times slower
    columns = jnp.stack([wide[:, :, c : c + width] for c in range(size)], 3)
    rows = jnp.stack([high[:, size - 1 - r : size - 1 - r + height] for r in range(size)], 3)
    channels, features = x.shape[3], gradient.shape[3]
    product = matmul(
        columns.reshape(-1, size * channels), rows.reshape(-1, size * features)
    )  # [c C, r F]
    return product.reshape(size, channels, size, features).transpose(2, 0, 1, 3)


def _xla_kernel_gradient(x: Array, gradient: Array, kernel: Array) -> Array:
    by_kernel = functools.partial(
        lax.conv_general_dilated,
        x,
        window_strides=(1, 1),
        padding='SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    (to_kernel,) = jax.linear_transpose(by_kernel, kernel.astype(x.dtype))(gradient)
    return to_kernel


def _conv_call(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """OneDNN's convolution; the settings are those of XLA's onednn_config.proto."""
    image = {'dims': 4, 'data': {'batch_dim': 0, 'feature_dim': 3, 'spatial_dims': [1, 2]}}
    filters = {'input_feature_dim': 2, 'output_feature_dim': 3, 'spatial_dims': [0, 1]}
    around = [kernel.shape[0] // 2] * 2
    settings: dict[str, Any] = {
        'dims': 4,
        'feature_groups': 1,
        'input': image,
        'output': image,
        'kernel': {'dims': 4, 'filter': filters},
        'window': {
            'strides': [1, 1],
            'pad_left': around,
            'pad_right': around,
            'window_dilations': [1, 1],
        },
    }
    operands = [x, kernel]
    if bias is not None:
        settings['fusions'] = {'ops': ['BIAS']}
        operands.append(bias)
    result = jax.ShapeDtypeStruct((*x.shape[:3], kernel.shape[3]), x.dtype)
    return _call('__onednn$convolution', {'onednn_conv_config': settings}, operands, result)


def matmul(a: Array, b: Array) -> Array:
    """A [P, M], b [P, N] -> a^T b [M, N] in float32."""
    result = jax.ShapeDtypeStruct((a.shape[1], b.shape[1]), jnp.float32)
    settings = {'onednn_matmul_config': {'transpose_a': True}}
    return _call('__onednn$matmul', settings, [a, b], result)


def _call(name: str, settings: dict[str, Any], operands: list[Array], result: Any) -> Array:
    call = jax.ffi.ffi_call(
        name,
        result,
        vmap_method='sequential',
        custom_call_api_version=2,
        legacy_backend_config=json.dumps(settings),
    )
    return call(*operands)
