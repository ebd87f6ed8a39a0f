"""Convolutions by oneDNN in XLA's programs for x86 CPUs: up to 1.7 times as fast as XLA's own.

jaxlib's wheels carry oneDNN and what calls it at run time; only the compiler pass that would choose
it is not built in. So the call is written here, in functions that `within` has wrapped. Its
settings are private to XLA and wrong ones end the process: it is used with the versions of jaxlib
that it was tested with (tests/test_onednn.py), elsewhere convolutions are XLA's.
"""

import contextvars
import functools
import json
import platform
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version
from jax import Array, lax

TESTED = ('0.10.2',)
"""Versions of jaxlib whose settings are the ones written here."""

LEAST_PRODUCTS = 20_000_000
"""Multiplications of a convolution: with fewer, what a call costs is more than it saves."""

_chosen = contextvars.ContextVar('onednn', default=False)


def usable() -> bool:
    """If this process can: with one CPU device, since XLA cannot split such a call over more."""
    return (
        sys.platform == 'linux'
        and platform.machine() == 'x86_64'
        and jaxlib.version.__version__ in TESTED
        and jax.default_backend() == 'cpu'
        and jax.device_count() == 1
    )


def within(function: Callable) -> Callable:
    """The function, which is traced with oneDNN's convolutions where `layers` asks for them."""

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        token = _chosen.set(True)
        try:
            return function(*args, **kwargs)
        finally:
            _chosen.reset(token)

    return traced


def takes(x: Array, kernel: Array, *, padding: str, stride: int) -> bool:
    """If the convolution of x [N, H, W, C] is one for `conv`."""
    if not _chosen.get():  # before sizes are looked at, which in an export are symbols
        return False
    plain = stride == 1 and (padding == 'SAME' or kernel.shape[:2] == (1, 1))
    odd = kernel.shape[0] == kernel.shape[1] and kernel.shape[0] % 2 == 1
    large = x.shape[0] * x.shape[1] * x.shape[2] * kernel.size >= LEAST_PRODUCTS
    return plain and odd and large and x.dtype == jnp.float32


@jax.custom_vjp
def conv(x: Array, kernel: Array, bias: Array) -> Array:
    """[N, H, W, C] * [k, k, C, F] + [F], k odd, zeros around: float32, as `layers.conv`."""
    return _call(x, kernel, bias)


def _forward(x: Array, kernel: Array, bias: Array) -> tuple[Array, tuple[Array, Array]]:
    return conv(x, kernel, bias), (x, kernel)


def _backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    x, kernel = kept
    # the gradient of the kernel begins with a copy of x in another order, which XLA makes as soon
    # as there is an x, and keeps: this makes it wait
    x = x + 0 * gradient[0, 0, 0, 0]
    to_x = _call(gradient, kernel[::-1, ::-1].swapaxes(2, 3))
    by_kernel = functools.partial(
        lax.conv_general_dilated,
        x,
        window_strides=(1, 1),
        padding='SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    (to_kernel,) = jax.linear_transpose(by_kernel, kernel)(gradient)  # XLA's: oneDNN's is slow
    return to_x, to_kernel, gradient.sum((0, 1, 2))


conv.defvjp(_forward, _backward)


def _call(x: Array, kernel: Array, bias: Array | None = None) -> Array:
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
    call = jax.ffi.ffi_call(
        '__onednn$convolution',
        jax.ShapeDtypeStruct((*x.shape[:3], kernel.shape[3]), x.dtype),
        vmap_method='sequential',
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({'onednn_conv_config': settings}),
    )
    return call(*operands)
