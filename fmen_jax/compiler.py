"""Compiler options by backend, in one table, and the `jit` that applies them."""

import warnings
from collections.abc import Callable
from typing import Any

import jax

from fmen_jax import onednn
from fmen_jax.files import cache_folder

# YNN is the CPU backend's default convolution library in jax 0.10; with it the 3x3 convolutions of
# 50 channels here run 1.4x (forward) to 2.2x (train step) slower than without.
COMPILER_OPTIONS: dict[str, dict[str, Any]] = {
    'cpu': {'xla_cpu_experimental_ynn_fusion_type': ''},
}


def jit(fun: Callable, *, libraries: bool = False, **options: Any) -> Any:
    """`jax.jit` with the options of the default backend, which this call starts.

    With `libraries` its convolutions are oneDNN's where those can be had (`fmen_jax.onednn`):
    faster, but it has no forward-mode derivative, cannot be exported and is not kept on disk.
    """
    table = COMPILER_OPTIONS.get(jax.default_backend(), {})
    fun = onednn.within(fun) if libraries and onednn.usable() else fun
    return jax.jit(fun, compiler_options=table, **options)


def keep_compiled() -> None:
    """Keep compiled programs on disk, so that no size is compiled twice; for command lines."""
    folder = cache_folder() / 'xla'
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # without a cache it works as well
    # a program that calls oneDNN cannot be kept, and says so each time
    warnings.filterwarnings('ignore', '.*persistent compilation cache entry.*bad_alloc')
    jax.config.update('jax_compilation_cache_dir', str(folder))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
