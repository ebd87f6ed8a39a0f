"""The scripts, run as a user runs them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmen_jax import porting
from fmen_jax.files import sha256
from tests.helpers import ROOT, Golden


def port(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / 'scripts/port_weights.py', *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parity
def test_port_weights(shared: Callable[[str], Path], tmp_path: Path, torch: Any) -> None:
    source = shared('official/fmen_s_x4_ntire2022.pth')
    done = port(source, tmp_path / 'out.safetensors')
    assert done.returncode == 0, done.stderr
    for text in (sha256(source), 'ntire2022', 'fmen_s, x4', '68, float32', '341,066'):
        assert text in done.stdout
    done = port(tmp_path / 'out.safetensors', tmp_path / 'back.pt', '--dialect', 'ntire2022')
    assert done.returncode == 0, done.stderr
    back, original = porting.read(tmp_path / 'back.pt'), porting.read(source)
    assert list(back) == list(original)
    assert all(back[key].tobytes() == original[key].tobytes() for key in original)


def test_port_weights_folds(tiny: Golden, tmp_path: Path) -> None:
    porting.write(tmp_path / 'train.safetensors', tiny.below('train/'), {})
    done = port(tmp_path / 'train.safetensors', tmp_path / 'deploy.safetensors', '--fold')
    assert done.returncode == 0, done.stderr
    expected = [key for key in tiny.below('deploy/') if key != 'y']
    assert list(porting.read(tmp_path / 'deploy.safetensors')) == expected


def test_port_weights_names_the_fault(tmp_path: Path) -> None:
    (tmp_path / 'broken.pt').write_bytes(b'PK\x03\x04')
    done = port(tmp_path / 'broken.pt', tmp_path / 'out.pt')
    assert done.returncode == 2
    assert done.stderr.startswith(f'error: {tmp_path / "broken.pt"}: broken or truncated')
    assert 'Traceback' not in done.stderr
    assert not (tmp_path / 'out.pt').exists()
