"""Convolutions by oneDNN inside XLA's programs for x86 CPUs, faster than XLA's own.

The wheels of jaxlib contain oneDNN and the functions that call it, but not the compiler pass that
would choose it, so the calls are written here. Two things must hold before one is made:

- The program asks for it: `compilation.jit(..., onednn=...)` traces its function inside `within`,
  which sets what `enabled_for` reads for each convolution (`models.layers.conv`).
- The self-test has passed. The format of the calls is private to XLA and may change with any
  release, and a wrong call can end the process. Therefore the first use with a new jaxlib or on a
  new CPU runs `python -m fmen_jax.runtime.onednn` in a child process, which compares the calls with
  XLA's own results, and stores the verdict in the cache folder. Without a verdict XLA's own
  convolutions run.

Arrays are [N, H, W, C], float32 or bfloat16.
"""

import contextvars
import functools
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
from jax import Array, lax

from fmen_jax import files
from fmen_jax.runtime import cpu

_log = logging.getLogger(__name__)

DTYPES = ('float32', 'bfloat16')
"""What the self-test tries, in this order: bfloat16 is the one that a CPU may lack."""

Use = Literal['never', 'large', 'always']
"""Which convolutions oneDNN computes: none; those of at least LEAST_PRODUCTS multiplications, which
is the fastest; or all. With 'always' an output value does not depend on the size of the image, so
tiles are bit-identical to the whole; XLA's own convolutions round differently at other widths."""

LEAST_PRODUCTS = 20_000_000
"""Multiplications below which XLA's convolutions are faster, whose calls have less overhead."""

SELF_TEST = (sys.executable, '-m', 'fmen_jax.runtime.onednn')
"""The command whose output is the verdict: a line 'passed DTYPE' for each dtype that is right."""

SELF_TEST_SECONDS: float = 60
"""Time limit of that command, after which there is no verdict."""

_FORMAT = 1  # raised when the self-test tries other calls, so that older verdicts do not count

_active: contextvars.ContextVar[tuple[frozenset[str], Use]] = contextvars.ContextVar(
    'onednn', default=(frozenset(), 'never')
)
"""The dtypes and the convolutions that oneDNN computes in the function being traced.

A context variable, because a network is traced through Flax and `jax.checkpoint`, which pass no
arguments of ours on, and because two threads may trace at once."""


def supported_dtypes() -> frozenset[str]:
    """The dtypes whose convolutions this process can leave to oneDNN.

    None on other systems than Linux on x86-64, or with several CPU devices, over which XLA cannot
    split such a call; otherwise those that passed the self-test.
    """
    usable = (
        sys.platform == 'linux'
        and platform.machine() == 'x86_64'
        and jax.default_backend() == 'cpu'
        and jax.device_count() == 1
    )
    return verdict(_verdict_path()) if usable else frozenset()


def within(function: Callable, use: Use) -> Callable:
    """Let oneDNN compute convolutions of a function, in every dtype that is supported."""
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
    """Whether `conv` should compute this convolution of the function being traced.

    Args:
      x: [N, H, W, C].
      kernel: [kh, kw, C, F].
      padding: SAME or VALID.
      stride: in pixels, of both axes.
    """
    dtypes, use = _active.get()
    if use == 'never':  # checked before the sizes, which are symbols in an export
        return False
    plain = stride == 1 and (padding == 'SAME' or kernel.shape[:2] == (1, 1))
    odd = kernel.shape[0] == kernel.shape[1] and kernel.shape[0] % 2 == 1
    products = x.shape[0] * x.shape[1] * x.shape[2] * kernel.size
    large = use == 'always' or products >= LEAST_PRODUCTS
    return plain and odd and large and x.dtype.name in dtypes


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
    else:  # XLA's is faster than a matrix product in float32, and oneDNN's own cannot be called
        to_kernel = _xla_kernel_gradient(x, gradient, kernel)
    to_bias = gradient.astype(jnp.float32).sum((0, 1, 2))
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


def _verdict_path() -> Path:
    name = f'jaxlib_{jaxlib.version.__version__}_{cpu.fingerprint()}_{_FORMAT}.json'
    return files.cache_folder() / 'onednn' / name


@functools.cache
def verdict(path: Path) -> frozenset[str]:
    """The stored verdict, or that of a self-test, which is stored if the folder can be written."""
    try:
        stored = json.loads(path.read_text(encoding='utf-8'))
        return frozenset(stored['passed']) & frozenset(DTYPES)
    except (OSError, ValueError, TypeError, KeyError):
        pass  # there is none, or it is damaged
    passed, ending = _run_self_test()
    _log.debug('oneDNN self-test: %s passed; %s', ', '.join(passed) or 'nothing', ending)
    if ending != 'timed out':  # a busy machine is no reason for a verdict that stays
        try:
            files.write_text(path, json.dumps({'passed': passed, 'ending': ending}) + '\n')
        except OSError as error:
            _log.debug('the verdict could not be stored: %s', error)
    return frozenset(passed)


def _run_self_test() -> tuple[list[str], str]:
    """The dtypes that a child process found right, and how it ended."""
    # one device, on the CPU, whatever this process has
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
    try:
        child = subprocess.run(
            SELF_TEST,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SELF_TEST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [], 'timed out'
    except OSError as error:
        return [], f'not started: {error}'
    passed = [name for name in DTYPES if f'passed {name}' in child.stdout.splitlines()]
    lines = child.stderr.strip().splitlines() or ['']
    return passed, f'exit status {child.returncode} {lines[-1]}'.strip()


def self_test() -> None:
    """Try every call in every dtype, and print a line for each dtype that is right.

    Runs in a process of its own. A wrong value or an error ends it before the line; a crash inside
    oneDNN leaves the lines that were already printed. bfloat16 is tried on CPUs that have
    instructions for it, because oneDNN would be slow, or end the process, on others.
    """
    import resource  # of Unix alone

    generator = np.random.default_rng(0)
    x, kernel, bias, gradient = (
        generator.normal(size=shape).astype(np.float32)
        for shape in ((2, 9, 7, 20), (3, 3, 20, 12), (12,), (2, 9, 7, 12))
    )

    # numbers that bfloat16 has, so that only sums and results are rounded
    x, kernel, bias, gradient = (
        np.asarray(a.astype(jnp.bfloat16), np.float32) for a in (x, kernel, bias, gradient)
    )

    def windows(a: np.ndarray) -> np.ndarray:  # [N, H, W, C] -> [N, H, W, C, 3, 3]
        padded = np.pad(a.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
        return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))

    expected = (
        np.einsum('nyxcij,ijcf->nyxf', windows(x), kernel) + bias,
        np.einsum('nyxfij,ijcf->nyxc', windows(gradient), kernel[::-1, ::-1]),
        np.einsum('nyxcij,nyxf->ijcf', windows(x), gradient),
        gradient.sum((0, 1, 2), np.float64),
    )

    def run(x: Array, kernel: Array, bias: Array, gradient: Array) -> Any:
        y, backward = jax.vjp(conv, x, kernel, bias)
        return y, *backward(gradient)

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash here is nothing to report
    bfloat16 = {'avx512_bf16', 'amx_bf16'} & {*cpu.features()}
    for name in DTYPES if bfloat16 else DTYPES[:1]:
        found = jax.jit(run)(jnp.asarray(x, name), kernel, bias, jnp.asarray(gradient, name))
        bound = 1e-5 if name == 'float32' else 1e-2  # of the largest value; bfloat16 has 2^-8
        for a, b in zip(found, expected, strict=True):
            error = np.abs(np.asarray(a, np.float64) - b).max()
            if not error <= bound * np.abs(b).max():
                raise SystemExit(f'{name}: differs by {error} of {np.abs(b).max()}')
        print(f'passed {name}', flush=True)  # noqa: T201


if __name__ == '__main__':
    self_test()
