"""Compiler options for each backend, and the `jit` that applies them."""

import warnings
from collections.abc import Callable
from typing import Any

import jax

from fmen_jax.errors import FMENWarning
from fmen_jax.files import cache_folder
from fmen_jax.runtime import cpu
from fmen_jax.runtime.onednn import Use, supported_dtypes, within

# YNN is the CPU backend's default convolution library in jax 0.10; with it the 3x3 convolutions of
# 50 channels here run 1.4x (forward) to 2.2x (train step) slower than without.
COMPILER_OPTIONS: dict[str, dict[str, Any]] = {
    'cpu': {'xla_cpu_experimental_ynn_fusion_type': ''},
}


def jit(fun: Callable, *, onednn: Use = 'never', **options: Any) -> Any:
    """Apply `jax.jit` with the options of the default backend, which this call initializes.

    Args:
      fun: the function to compile.
      onednn: which convolutions oneDNN computes where it is supported. That is faster, but such a
        program has no forward-mode derivative, cannot be exported, and is not stored in the
        compilation cache.
      options: further keyword arguments of `jax.jit`.
    """
    table = COMPILER_OPTIONS.get(jax.default_backend(), {})
    return jax.jit(within(fun, onednn), compiler_options=table, **options)


def supported_dtype(dtype: str, backend: str = '') -> str:
    """Return the dtype to compute in on this machine when `dtype` is requested.

    XLA's own bfloat16 convolutions are slower on a CPU than its float32 ones. Where oneDNN does
    not support bfloat16 either, float32 is used instead, with a warning.

    Args:
      dtype: the requested dtype.
      backend: backend that computes; the default backend of JAX if omitted.
    """
    if dtype != 'bfloat16' or (backend or jax.default_backend()) != 'cpu':
        return dtype
    if 'bfloat16' in supported_dtypes():
        return dtype
    found = ', '.join(cpu.features()) or 'none of the vector extensions that it uses'
    warnings.warn(
        'oneDNN does not support bfloat16 here; computing in float32, which is faster on this '
        'machine and more accurate. bfloat16 needs Linux, one CPU device, and a CPU with '
        f'AVX512-BF16 or AMX; this is {cpu.model()} with {found}.',
        FMENWarning,
        stacklevel=2,
    )
    return 'float32'


def keep_compiled() -> None:
    """Store compiled programs on disk, so that no size is compiled twice; for command lines."""
    folder = cache_folder() / 'xla'
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # works without a cache, too
    # Programs that call oneDNN cannot be stored, and JAX warns about it each time.
    warnings.filterwarnings('ignore', '.*persistent compilation cache entry.*bad_alloc')
    jax.config.update('jax_compilation_cache_dir', str(folder))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
