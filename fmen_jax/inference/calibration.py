"""Choice of the fastest engine on this machine by measurement."""

import hashlib
import importlib.metadata
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fmen_jax import files
from fmen_jax.runtime import cpu

_log = logging.getLogger(__name__)

# Side of the picture in LR pixels, large enough that the computation dominates the call overhead.
# Measuring three engines takes about two seconds.
_SIDE = 160
_ROUNDS = 3
_PACKAGES = ('fmen_jax', 'jaxlib', 'onnxruntime', 'openvino')


def fastest(makers: Mapping[str, Callable[[], Any]], *, of: str) -> str:
    """Return the name of the engine that upscales a picture of 160x160 pixels in the least time.

    Engines are measured once for each kind of CPU, number of CPUs and set of engine versions; the
    result is stored in the cache folder if that folder is writable.

    Args:
      makers: for each name, a function that builds the engine.
      of: description of the network and the shared settings for which the result is valid.
    """
    if len(makers) == 1:
        return next(iter(makers))
    path = files.cache_folder() / 'engines' / f'{_key(makers, of)}.json'
    try:
        stored = json.loads(path.read_text(encoding='utf-8'))['fastest']
        if stored in makers:
            return stored
    except (OSError, ValueError, TypeError, KeyError):
        pass  # not measured yet, or the file is damaged
    seconds = _measure({name: make() for name, make in makers.items()})
    found = min(seconds, key=lambda name: seconds[name])
    _log.debug('the fastest engine is %s: %s', found, seconds)
    try:
        files.write_text(path, json.dumps({'fastest': found, 'seconds': seconds, 'of': of}) + '\n')
    except OSError as error:
        _log.debug('the choice of engine could not be stored: %s', error)
    return found


def _measure(engines: Mapping[str, Any]) -> dict[str, float]:
    """Return the median seconds per call; the engines take turns, so that noise is shared."""
    x = np.random.default_rng(0).uniform(0, 255, (1, _SIDE, _SIDE, 3)).astype(np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(_ROUNDS + 1):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine(x)
            if turn:  # the first call compiles
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _key(names: Mapping[str, Any], of: str) -> str:
    versions = [(name, _version(name)) for name in _PACKAGES]
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    known = (of, sorted(names), versions, cpu.fingerprint(), cpus, jax.device_count())
    return hashlib.sha256(repr(known).encode()).hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ''
