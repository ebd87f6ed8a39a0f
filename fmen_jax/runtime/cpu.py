"""Which CPU this is, as far as fast paths and stored measurements depend on it."""

import functools
import hashlib
import platform
from pathlib import Path

FEATURES = ('avx2', 'avx512f', 'avx512_bf16', 'avx_vnni', 'avx_ne_convert', 'amx_tile', 'amx_bf16')
"""The instruction sets that decide which kernels oneDNN and XLA choose, as Linux names them."""


@functools.cache
def model() -> str:
    """Name of the CPU, such as 'AMD EPYC'; of its architecture if it has no name."""
    return _field('model name') or platform.processor() or platform.machine()


@functools.cache
def features() -> tuple[str, ...]:
    """Those of FEATURES that the CPU has; none where the system does not tell."""
    flags = _field('flags').split()
    return tuple(name for name in FEATURES if name in flags)


@functools.cache
def fingerprint() -> str:
    """Twelve hexadecimal digits that name this kind of CPU in file names."""
    kind = [platform.machine(), *(_field(name) for name in ('model name', 'model', 'flags'))]
    return hashlib.sha256('\n'.join(kind).encode()).hexdigest()[:12]


@functools.cache
def _fields() -> dict[str, str]:
    """The first processor in /proc/cpuinfo; empty on other systems than Linux."""
    try:
        text = Path('/proc/cpuinfo').read_text(encoding='utf-8')
    except OSError:
        return {}
    pairs = (line.partition(':') for line in text.split('\n\n')[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _field(name: str) -> str:
    return _fields().get(name, '')
