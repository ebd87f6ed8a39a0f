"""The choice of the fastest engine."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmen_jax.errors import FMENError
from fmen_jax.inference import calibration, engines
from fmen_jax.network import load


class Timed:
    """An engine that takes a given time, and counts its calls."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds, self.calls = name, seconds, 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.calls += 1
        time.sleep(self.seconds)
        return x


def fails(*args: Any) -> Any:
    raise RuntimeError('broken')


def makers(**seconds: float) -> tuple[dict[str, Timed], dict[str, Callable[[], Any]]]:
    made = {name: Timed(name, value) for name, value in seconds.items()}
    return made, {name: (lambda engine=engine: engine) for name, engine in made.items()}


def test_the_fastest_is_chosen_once(cache: Path) -> None:
    made, functions = makers(slow=0.1, fast=0.001)
    assert calibration.fastest(functions, of='x').name == 'fast'
    calls = made['fast'].calls
    assert calls > 1
    assert calibration.fastest(functions, of='x').name == 'fast'
    assert made['fast'].calls == calls  # from the cache
    (path,) = (cache / 'engines').glob('*.json')
    assert json.loads(path.read_text())['seconds'].keys() == {'slow', 'fast'}
    calibration.fastest(functions, of='another network')
    assert made['fast'].calls == 2 * calls
    path.write_text('{"fastest": "gone"}')  # damaged, or of other engines
    assert calibration.fastest(functions, of='x').name == 'fast'
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
    assert calibration.fastest(functions, of='x').name == 'only'
    assert made['only'].calls == 0
    assert not (cache / 'engines').exists()


def test_a_cache_that_cannot_be_written(cache: Path) -> None:
    (cache / 'engines').write_text('a file where the folder should be')
    _, functions = makers(slow=0.05, fast=0.0)
    assert calibration.fastest(functions, of='x').name == 'fast'


def test_engines_that_fail_are_left_out(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, functions = makers(fast=0.0, slow=0.01, slower=0.1)
    functions |= {'fast': lambda: fails, 'slow': fails}
    assert calibration.fastest(functions, of='x').name == 'slower'
    assert 'the engine fast fails and is left out: RuntimeError: broken' in caplog.text
    assert 'the engine slow fails and is left out: RuntimeError: broken' in caplog.text
    assert not (cache / 'engines').exists()  # the failure may pass
    with pytest.raises(FMENError, match='none of the engines fast, slow works here'):
        calibration.fastest(dict.fromkeys(('fast', 'slow'), fails), of='x')


def test_a_chosen_engine_that_fails_later(caplog: pytest.LogCaptureFixture) -> None:
    _, functions = makers(fast=0.0, slow=0.01, slower=0.1)
    assert calibration.fastest(functions, of='x').name == 'fast'
    functions['fast'] = fails
    assert calibration.fastest(functions, of='x').name == 'slow'
    assert 'the engine fast fails' in caplog.text


def test_what_auto_chooses_among(monkeypatch: pytest.MonkeyPatch) -> None:
    net = load('fmen_s_x2')
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name)
    assert engines.installed(net, 'float32') == ['xla', 'openvino', 'onnxruntime']
    assert engines.installed(net, 'bfloat16') == ['xla', 'openvino']
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert engines.installed(net, 'float32') == ['xla']
