"""What all commands have in common."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import skimage.data

from fmen_jax import __version__
from fmen_jax.cli import COMMANDS
from fmen_jax.data.pairs import find_pairs
from fmen_jax.weights.names import SHIPPED
from tests.helpers import ROOT, not_utf8, run_cli, save


def test_overview_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli('--help') == 0
    overview = capsys.readouterr().out
    assert all(f'\n  {name} ' in overview for name in COMMANDS)
    assert run_cli('--version') == 0
    assert capsys.readouterr().out == f'fmen_jax {__version__}\n'
    assert run_cli('enlarge', 'a.png') == 2
    assert "error: no command 'enlarge'" in capsys.readouterr().err
    assert run_cli() == 2


@pytest.mark.parametrize('error', [RuntimeError, AssertionError])
def test_devices_that_are_absent(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
    monkeypatch.setattr(jax, 'default_backend', fail)
    assert run_cli('compare', '-w', 'rlfn', '--sizes', '16x16') == 2
    assert 'JAX_PLATFORMS is cuda, but JAX cannot use such devices' in capsys.readouterr().err


def test_names_that_cannot_be_printed_are_escaped(tmp_path: Path) -> None:
    name = not_utf8(b'\xce\xb1\xff.safetensors')
    shutil.copy(SHIPPED / 'fmen_s_x4.safetensors', tmp_path / name)
    environment = os.environ | {'PYTHONIOENCODING': 'ascii', 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-m', 'fmen_jax', 'info', name]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert rb'\u03b1\udcff.safetensors' in done.stdout, done.stderr


@pytest.mark.parametrize('command', ['train', 'sweep', 'ablate'])
def test_the_configuration_comes_first(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(command, '--help') == 0
    assert capsys.readouterr().out.startswith(f'usage: fmen-jax {command} CONFIG ')
    assert run_cli(command, '--workdir', 'runs', 'config.py') == 2
    assert 'error: the first argument is --workdir; expected CONFIG' in capsys.readouterr().err
    assert run_cli(command) == 2
    assert 'error: there are no arguments; expected CONFIG' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('prepare . -s 0', 'scale is 0; expected 1 or more'),
        ('compare --rounds 0', '--rounds is 0; expected 1 or more'),
        ('web -o page --port 70000', '--port is 70000; expected 0 or more and less than 65536'),
        ('upscale a.png --suffix /x4', "suffix is '/x4'; expected a part of a file name"),
        ('upscale a.png --ext a/b', "ext is 'a/b'; expected a part of a file name"),
        ('upscale a.png --suffix {scale.x}', "suffix is '{scale.x}'; expected a text"),
        ('upscale a.png --suffix {scale[0]}', "suffix is '{scale[0]}'; expected a text"),
        ('inspect fmen_s_x4 foreign -o out', 'foreign: holds no pictures'),
        ('prepare . -s 2 -o foreign', 'foreign contains something other than a prepared source'),
        ('parity fmen_s_x4 --write-probe foreign', 'foreign'),
        ('parity fmen_s_x4 --device gpu', '--device is gpu; JAX finds no such device here'),
    ],
)
def test_bad_values_are_one_error_before_any_work(
    arguments: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / 'a.png', skimage.data.astronaut()[:16, :16])
    (tmp_path / 'foreign').mkdir()
    (tmp_path / 'foreign' / 'index.json').write_text('[]')
    (tmp_path / 'foreign' / '._a.png').write_bytes(b'of macOS')
    assert run_cli(*arguments.split()) == 2
    assert message in ' '.join(capsys.readouterr().err.split())  # tyro breaks lines


def test_the_current_folder_has_the_name_of_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / 'DIV2K' / 'DIV2K_HR' / '1.png', skimage.data.astronaut()[:16, :16])
    monkeypatch.chdir(tmp_path / 'DIV2K')
    assert [pair.name for pair in find_pairs(Path(), 2)] == ['1']
