"""Choice of the fastest engine on this machine by measurement."""

import hashlib
import importlib.metadata
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fmen_jax import files
from fmen_jax.errors import FMENError
from fmen_jax.runtime import cpu

_log = logging.getLogger(__name__)

# Side of the picture in LR pixels, large enough that the computation dominates the call overhead.
# Measuring three engines takes about two seconds.
_SIDE = 160
_ROUNDS = 3
_PACKAGES = ('fmen_jax', 'jaxlib', 'onnxruntime', 'openvino')


def fastest(makers: Mapping[str, Callable[[], Any]], *, of: str) -> Any:
    """Return the engine that upscales a picture of 160x160 pixels in the least time.

    Engines are measured once for each kind of CPU, number of CPUs and set of engine versions; the
    result is stored in the cache folder if that folder is writable. An engine that fails is left
    out with a warning, and the result is then not stored, because the failure may pass.

    Args:
      makers: for each name, a function that builds the engine.
      of: description of the network and the shared settings for which the result is valid.

    Raises:
      FMENError: All engines fail.
    """
    if len(makers) == 1:
        (make,) = makers.values()
        return make()
    path = files.cache_folder() / 'engines' / f'{_key(makers, of)}.json'
    name = _stored(path)
    if name in makers and (engine := _build(name, makers[name])):
        return engine
    x = np.random.default_rng(0).uniform(0, 255, (1, _SIDE, _SIDE, 3)).astype(np.float32)
    engines = {name: engine for name, make in makers.items() if (engine := _build(name, make, x))}
    if not engines:
        raise FMENError(
            f'none of the engines {", ".join(makers)} works here: reinstall the packages that the '
            'warnings above name.'
        )
    seconds = _measure(engines, x)
    name = min(seconds, key=lambda name: seconds[name])
    _log.debug('the fastest engine is %s: %s', name, seconds)
    if engines.keys() == makers.keys():
        try:
            stored = {'fastest': name, 'seconds': seconds, 'of': of}
            files.write_text(path, json.dumps(stored) + '\n')
        except OSError as error:
            _log.debug('the choice of engine could not be stored: %s', error)
    return engines[name]


def _stored(path: Path) -> str:
    """Return the stored name of the fastest engine; empty if there is none."""
    try:
        return str(json.loads(path.read_text(encoding='utf-8'))['fastest'])
    except (OSError, ValueError, TypeError, KeyError):
        return ''  # not measured yet, or the file is damaged


def _build(name: str, make: Callable[[], Any], x: np.ndarray | None = None) -> Any:
    """Return an engine that has upscaled `x`, if given; None, with a warning, if it fails."""
    try:
        engine = make()
        if x is not None:
            engine(x)
    except Exception as error:
        _log.warning(
            'the engine %s fails and is left out: %s: %s', name, type(error).__name__, error
        )
        return None
    return engine


def _measure(engines: Mapping[str, Any], x: np.ndarray) -> dict[str, float]:
    """Return the median seconds per call; the engines take turns, so that noise is shared."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(_ROUNDS):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine(x)
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
