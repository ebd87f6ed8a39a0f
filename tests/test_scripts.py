"""The scripts, run as a user runs them."""

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from fmen_jax import porting
from fmen_jax.files import sha256
from fmen_jax.models.initial import initial_variables
from fmen_jax.models.linear_blocks import BLOCKS, block_class
from fmen_jax.models.variant import VariantConfig
from fmen_jax.network import Network
from tests.helpers import ROOT, Golden, not_utf8


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
    done = port(tmp_path / 'out.safetensors', tmp_path / 'back.pt', '--key-style', 'ntire2022')
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


def test_port_weights_with_a_name_that_is_not_utf8(tiny_x2: Golden, tmp_path: Path) -> None:
    source, target = (tmp_path / not_utf8(b'%b\xff.safetensors' % name) for name in (b'a', b'b'))
    porting.write(source, tiny_x2.below('train/'), {})
    done = port(source, target)
    assert done.returncode == 0, done.stderr
    assert target.is_file()


def test_port_weights_names_the_fault(tmp_path: Path) -> None:
    (tmp_path / 'broken.pt').write_bytes(b'PK\x03\x04')
    done = port(tmp_path / 'broken.pt', tmp_path / 'out.pt')
    assert done.returncode == 2
    assert done.stderr.startswith(f'error: {tmp_path / "broken.pt"}: broken or truncated')
    assert 'Traceback' not in done.stderr
    assert not (tmp_path / 'out.pt').exists()


@pytest.fixture
def preconditioner(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """The exit code of scripts/preconditioner.py, and what it printed."""

    def run(*args: object) -> tuple[int, str]:
        script = str(ROOT / 'scripts/preconditioner.py')
        monkeypatch.setattr(sys, 'argv', [script, *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(script, run_name='__main__')
        found = capsys.readouterr()
        return ended.value.code, found.out or found.err

    return run


def checkpoint(path: Path, graph: Any = 'expanded', **changes: Any) -> tuple[Path, Any]:
    """A small variant whose running statistics are not 0 and 1; its path and variables."""
    sizes: dict[str, Any] = {'n_feats': 3, 'mid_feats': 5, 'down_blocks': 1, 'up_blocks': (0, 0)}
    config = VariantConfig(2, 'RB', **{**sizes, **changes})
    variables = initial_variables(config, graph)
    if 'batch_stats' in variables:
        draw = np.random.default_rng(0).uniform
        statistics = jax.tree.map(lambda a: draw(0.1, 2, a.shape).astype(a.dtype), variables)
        variables = {**variables, 'batch_stats': statistics['batch_stats']}
    Network(config, graph, variables).save(path)
    return path, variables


@pytest.mark.parametrize('block', ['ecb', 'repsr'])  # without and with batch norms
def test_preconditioner_of_a_variant(
    block: str, tmp_path: Path, preconditioner: Callable[..., tuple[int, str]]
) -> None:
    path, variables = checkpoint(tmp_path / 'train.safetensors', block=block)
    code, out = preconditioner(path)
    header, _, first, second = out.splitlines()
    assert code == 0
    assert [first.split(' | ')[0], second.split(' | ')[0]] == ['| `RBs_0/conv1`', '| `RBs_0/conv2`']
    assert header.split(' | ')[6] == 'largest'
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, float), variables)
        params = wide['params']['RBs_0']['conv1']
        statistics = wide['batch_stats'].get('RBs_0', {}).get('conv1', {})
        flat, unravel = ravel_pytree(params)
        collapse = block_class(block).collapse
        jacobian = jax.jacobian(lambda p: ravel_pytree(collapse(unravel(p), statistics))[0])(flat)
        expected = float(jnp.linalg.norm(jacobian, 2)) ** 2
    assert float(first.split(' | ')[6]) == pytest.approx(expected, rel=5e-3)  # three digits


def test_preconditioner_of_nothing_is_an_error(
    tmp_path: Path, preconditioner: Callable[..., tuple[int, str]]
) -> None:
    folded, _ = checkpoint(tmp_path / 'a.safetensors', 'deploy', attention='none')
    empty, _ = checkpoint(tmp_path / 'b.safetensors', down_blocks=0, up_blocks=(1,))
    for args, message in [
        (folded, f'error: {folded} is folded; expected a train checkpoint'),
        (empty, f'error: {empty} has no backbone blocks, down_blocks being 0'),
    ]:
        code, found = preconditioner(args)
        assert code == 2
        assert found.startswith(message)


@pytest.mark.slow
def test_preconditioner_of_fresh_blocks_covers_all(weights: Path, tiny_x2: Golden) -> None:
    script = runpy.run_path(str(ROOT / 'scripts/preconditioner.py'))
    pairs = tiny_x2.config['down_blocks']
    expected = [f'`ERBs_{i}/{part}`' for i in range(pairs) for part in ('conv1', 'conv2')]
    assert [name for name, *_ in script['trained'](str(weights))] == expected
    fresh = script['fresh']()
    assert {name.removeprefix('fresh ').split(',')[0] for name, *_ in fresh} == {*BLOCKS}
    for _, collapse, params in fresh:
        assert collapse(params)['kernel'].shape == (3, 3, 50, 50)
