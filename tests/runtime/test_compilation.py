"""Which dtype is computed in, and what the user is told."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from fmen_jax.errors import FMENWarning
from fmen_jax.inference.settings import InferenceSettings
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.network import load
from fmen_jax.runtime import compilation
from fmen_jax.runtime.compilation import supported_dtype

NOTE = 'oneDNN does not support bfloat16 here; computing in float32'


@pytest.fixture
def onednn_dtypes(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[str]], None]:
    """Sets what oneDNN supports."""
    return lambda dtypes: monkeypatch.setattr(
        compilation, 'supported_dtypes', lambda: frozenset(dtypes)
    )


def test_bfloat16_where_it_is_slow_is_float32_with_a_warning(
    onednn_dtypes: Callable[[set[str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    onednn_dtypes({'float32'})
    with pytest.warns(FMENWarning, match=NOTE):
        assert supported_dtype('bfloat16') == 'float32'
    assert supported_dtype('float32') == 'float32'
    assert supported_dtype('float64') == 'float64'
    onednn_dtypes({'float32', 'bfloat16'})
    assert supported_dtype('bfloat16') == 'bfloat16'
    onednn_dtypes(set())
    monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
    assert supported_dtype('bfloat16') == 'bfloat16'
    with pytest.warns(FMENWarning, match=NOTE):  # as for OpenVINO, which computes on the CPU
        assert supported_dtype('bfloat16', 'cpu') == 'float32'


@pytest.mark.parametrize('engine', ['xla', 'openvino', 'auto'])
def test_an_upscaler_without_bfloat16_gives_float32(
    engine: Any, onednn_dtypes: Callable[[set[str]], None], weights: Path
) -> None:
    if engine == 'openvino':
        pytest.importorskip('openvino')
    onednn_dtypes({'float32'})
    net, x = load(weights), np.full((8, 8, 3), 77, np.uint8)
    with pytest.warns(FMENWarning, match=NOTE) as notes:
        upscaler = Upscaler(net, InferenceSettings(engine=engine, dtype='bfloat16'))
    assert [n.category for n in notes].count(FMENWarning) == 1
    assert upscaler.engine.dtype == 'float32'
    assert 'float32' in upscaler.fingerprint  # the manifest tells what was computed
    same = Upscaler(net, InferenceSettings(engine=upscaler.engine.name))
    np.testing.assert_array_equal(upscaler(x), same(x))


@pytest.mark.slow
def test_the_command_line_prints_a_note(tmp_path: Path) -> None:
    """With several CPU devices there is no oneDNN on any machine."""
    Image.new('RGB', (8, 8), 'teal').save(tmp_path / 'x.png')
    options = ('-s', '2', '--dtype', 'bfloat16', '--engine', 'xla')
    done = subprocess.run(
        [sys.executable, '-m', 'fmen_jax', 'upscale', tmp_path / 'x.png', *options],
        env=os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=2'},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f'note: {NOTE}' in done.stderr
    assert '.py' not in done.stderr
    assert (tmp_path / 'x_x2.png').is_file()
