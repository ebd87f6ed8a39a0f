"""Self-test that decides whether oneDNN may be called.

The format of the calls may change with any release of jaxlib, and a wrong call can end the process.
Therefore the first use with a new jaxlib or on a new CPU runs this module in a child process
(`python -m fmen_jax.runtime.onednn_self_test`), which compares the calls with NumPy's
results. The verdict is stored in the cache folder if it is one about the CPU and jaxlib: the calls
are right, wrong or refused, or crash. Anything else, such as a lack of memory, says nothing about
the calls, and the next process tests them again.
"""

import functools
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
from jax import Array

from fmen_jax import files
from fmen_jax.runtime import cpu, onednn_calls

_log = logging.getLogger(__name__)

DTYPES = ('float32', 'bfloat16')
"""Dtypes that the self-test tries, in this order; a CPU may lack bfloat16."""

SELF_TEST = (sys.executable, '-m', 'fmen_jax.runtime.onednn_self_test')
"""Command that runs the self-test. It prints a line 'passed DTYPE' for each dtype that is right."""

SELF_TEST_SECONDS: float = 60
"""Time limit of that command in seconds, after which there is no verdict."""

_WRONG = 3
"""Exit status of that command if a call is wrong or refused; other errors end it with 1."""

_CRASHES = frozenset(
    getattr(signal, name, None)  # Windows lacks some
    for name in ('SIGILL', 'SIGTRAP', 'SIGABRT', 'SIGBUS', 'SIGFPE', 'SIGSEGV')
)
"""Signals by which a wrong call ends the process; others are sent to it, as by the kernel when
memory runs out."""

_FORMAT = 3  # increased when the self-test changes, which invalidates older verdicts


def stored_verdict() -> frozenset[str]:
    """Return the dtypes that are supported by this jaxlib on this CPU; tests them on first use."""
    name = f'jaxlib_{jaxlib.version.__version__}_{cpu.fingerprint()}_{_FORMAT}.json'
    return verdict(files.cache_folder() / 'onednn' / name)


@functools.cache
def verdict(path: Path) -> frozenset[str]:
    """Return the dtypes that are supported according to the verdict stored at `path`.

    If there is none, the self-test runs. If it comes to a verdict, and the folder is writable, that
    is stored.
    """
    try:
        stored = json.loads(path.read_text(encoding='utf-8'))
        return frozenset(stored['passed']) & frozenset(DTYPES)
    except (OSError, ValueError, TypeError, KeyError):
        pass  # the file does not exist or is damaged
    passed, outcome, is_verdict = _run_self_test()
    _log.debug('oneDNN self-test: %s passed; %s', ', '.join(passed) or 'nothing', outcome)
    if is_verdict:
        try:
            files.write_text(path, json.dumps({'passed': passed, 'outcome': outcome}) + '\n')
        except OSError as error:
            _log.debug('the verdict could not be stored: %s', error)
    return frozenset(passed)


def _run_self_test() -> tuple[list[str], str, bool]:
    """Run the self-test in a child process.

    Returns:
      The dtypes that passed, how the process ended, and whether that is a verdict on the calls.
    """
    # one CPU device, regardless of the devices of this process
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
        return [], 'timed out', False
    except OSError as error:
        return [], f'not started: {error}', False
    passed = [name for name in DTYPES if f'passed {name}' in child.stdout.splitlines()]
    lines = child.stderr.strip().splitlines() or ['']
    is_verdict = child.returncode in (0, _WRONG) or -child.returncode in _CRASHES
    return passed, f'exit status {child.returncode} {lines[-1]}'.strip(), is_verdict


def self_test() -> None:
    """Try every call in every dtype, and print 'passed DTYPE' for each dtype that is right.

    A wrong value or a call that XLA refuses ends the process with the exit status _WRONG before the
    line is printed; a crash inside oneDNN leaves the lines that were already printed. bfloat16 is
    tried only on CPUs that have instructions for it; on others, oneDNN would be slow or end the
    process.
    """
    import resource  # exists on Unix only

    generator = np.random.default_rng(0)
    x, kernel, bias, gradient = (
        generator.normal(size=shape).astype(np.float32)
        for shape in ((2, 9, 7, 20), (3, 3, 20, 12), (12,), (2, 9, 7, 12))
    )

    # values that bfloat16 represents exactly, so that only sums and results are rounded
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
        y, backward = jax.vjp(onednn_calls.conv, x, kernel, bias)
        return y, *backward(gradient)

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core dump if oneDNN crashes
    bfloat16 = {'avx512_bf16', 'amx_bf16'} & {*cpu.features()}
    for name in DTYPES if bfloat16 else DTYPES[:1]:
        try:
            given = jnp.asarray(x, name), kernel, bias, jnp.asarray(gradient, name)
            found = jax.block_until_ready(jax.jit(run)(*given))
        except jax.errors.JaxRuntimeError as error:
            if 'RESOURCE_EXHAUSTED' in str(error):
                raise
            _end_as_wrong(f'{name}: {error}')
        bound = 1e-5 if name == 'float32' else 1e-2  # share of the largest value; bfloat16 has 2^-8
        for a, b in zip(found, expected, strict=True):
            error = np.abs(np.asarray(a, np.float64) - b).max()
            if not error <= bound * np.abs(b).max():
                _end_as_wrong(f'{name}: differs by {error} of {np.abs(b).max()}')
        print(f'passed {name}', flush=True)  # noqa: T201


def _end_as_wrong(message: str) -> NoReturn:
    print(message, file=sys.stderr)  # noqa: T201
    sys.exit(_WRONG)


if __name__ == '__main__':
    self_test()
