"""The choice of the fastest engine."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmen_jax.inference import calibration, engines
from fmen_jax.network import load


class Timed:
    """An engine that takes a given time, and counts its calls."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.calls = seconds, 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.calls += 1
        time.sleep(self.seconds)
        return x


def makers(**seconds: float) -> tuple[dict[str, Timed], dict[str, Callable[[], Any]]]:
    made = {name: Timed(value) for name, value in seconds.items()}
    return made, {name: (lambda engine=engine: engine) for name, engine in made.items()}


def test_the_fastest_is_chosen_once(cache: Path) -> None:
    made, functions = makers(slow=0.1, fast=0.001)
    assert calibration.fastest(functions, of='x') == 'fast'
    calls = made['fast'].calls
    assert calls > 1
    assert calibration.fastest(functions, of='x') == 'fast'
    assert made['fast'].calls == calls  # from the cache
    (path,) = (cache / 'engines').glob('*.json')
    assert json.loads(path.read_text())['seconds'].keys() == {'slow', 'fast'}
    calibration.fastest(functions, of='another network')
    assert made['fast'].calls == 2 * calls
    path.write_text('{"fastest": "gone"}')  # damaged, or of other engines
    assert calibration.fastest(functions, of='x') == 'fast'
    assert made['fast'].calls == 3 * calls


def test_another_version_is_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    made, functions = makers(a=0.0, b=0.05)
    calibration.fastest(functions, of='x')
    calls = made['a'].calls
    monkeypatch.setattr(calibration.importlib.metadata, 'version', lambda name: '99')
    calibration.fastest(functions, of='x')
    assert made['a'].calls == 2 * calls


def test_one_engine_is_not_measured(cache: Path) -> None:
    made, functions = makers(only=0.0)
    assert calibration.fastest(functions, of='x') == 'only'
    assert made['only'].calls == 0
    assert not (cache / 'engines').exists()


def test_a_cache_that_cannot_be_written(cache: Path) -> None:
    (cache / 'engines').write_text('a file where the folder should be')
    _, functions = makers(slow=0.05, fast=0.0)
    assert calibration.fastest(functions, of='x') == 'fast'


def test_what_auto_chooses_among(monkeypatch: pytest.MonkeyPatch) -> None:
    net = load('fmen_s_x2')
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name)
    assert engines.installed(net, 'float32') == ['xla', 'openvino', 'onnxruntime']
    monkeypatch.setattr(engines.onednn, 'supported_dtypes', lambda: frozenset({'bfloat16'}))
    assert engines.installed(net, 'bfloat16') == ['xla', 'openvino']
    monkeypatch.setattr(engines.onednn, 'supported_dtypes', frozenset)
    assert engines.installed(net, 'bfloat16') == ['openvino']  # xla would compute in float32
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert engines.installed(net, 'float32') == ['xla']
