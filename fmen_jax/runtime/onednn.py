"""Choice of the convolutions that oneDNN computes inside XLA's programs, faster than XLA's own.

Two things must hold before oneDNN is called (`onednn_calls`):

- The program asks for it: `compilation.jit(..., onednn=...)` traces its function inside `within`,
  which sets what `enabled_for` reads for each convolution (`models.layers.conv`).
- The self-test has passed on this CPU with this jaxlib (`onednn_self_test`). Otherwise XLA's own
  convolutions run.
"""

import contextvars
import functools
import platform
import sys
from collections.abc import Callable
from typing import Any, Literal

import jax
from jax import Array

from fmen_jax.runtime import onednn_self_test

Use = Literal['never', 'large', 'always']
"""Convolutions that oneDNN computes: none; those of at least LEAST_PRODUCTS multiplications, which
is fastest; or all. With 'always' an output value does not depend on the size of the image, so
tiles are bit-identical to the whole; XLA's own convolutions round differently at other widths."""

LEAST_PRODUCTS = 20_000_000
"""Number of multiplications below which XLA's convolutions, with less overhead, are faster."""

_active: contextvars.ContextVar[tuple[frozenset[str], Use]] = contextvars.ContextVar(
    'onednn', default=(frozenset(), 'never')
)
"""Dtypes and convolutions that oneDNN computes in the function being traced.

This is a context variable because a network is traced through Flax and `jax.checkpoint`, which do
not pass on arguments of ours, and because two threads may trace at once."""


def supported_dtypes() -> frozenset[str]:
    """Return the dtypes whose convolutions oneDNN can compute in this process.

    These are the dtypes that passed the self-test. There are none on systems other than Linux on
    x86-64, or with several CPU devices, over which XLA cannot split such a call.
    """
    usable = (
        sys.platform == 'linux'
        and platform.machine() == 'x86_64'
        and jax.default_backend() == 'cpu'
        and jax.device_count() == 1
    )
    return onednn_self_test.stored_verdict() if usable else frozenset()


def within(function: Callable, use: Use) -> Callable:
    """Return a function whose convolutions oneDNN computes, in every dtype that is supported."""
    if use == 'never' or not (dtypes := supported_dtypes()):
        return function

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        token = _active.set((dtypes, use))
        try:
            return function(*args, **kwargs)
        finally:
            _active.reset(token)

    return traced


def enabled_for(x: Array, kernel: Array, *, padding: str, stride: int) -> bool:
    """Return whether oneDNN should compute this convolution of the function being traced.

    Args:
      x: [N, H, W, C].
      kernel: [kh, kw, C, F].
      padding: SAME or VALID.
      stride: stride along both axes in pixels.
    """
    dtypes, use = _active.get()
    if use == 'never':  # checked before the sizes, which are symbols in an export
        return False
    plain = stride == 1 and (padding == 'SAME' or kernel.shape[:2] == (1, 1))
    odd = kernel.shape[0] == kernel.shape[1] and kernel.shape[0] % 2 == 1
    products = x.shape[0] * x.shape[1] * x.shape[2] * kernel.size
    large = use == 'always' or products >= LEAST_PRODUCTS
    return plain and odd and large and x.dtype.name in dtypes
