"""How the reference is run: what goes wrong is one clear line."""

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmen_jax
from fmen_jax import porting
from fmen_jax.errors import InputError
from fmen_jax.models.initial import initial_variables
from fmen_jax.models.rfdn import RFDNConfig
from fmen_jax.models.rlfn import RLFNConfig
from fmen_jax.models.variant import VariantConfig
from fmen_jax.network import Network
from fmen_jax.parity import Dump, assert_parity, run_reference
from fmen_jax.parity.reference import ReferenceConfig, make_inputs, probe_settings, write_probe
from fmen_jax.parity.stages import NOISE, STEPS, TRAIN, WEIGHTS, CompareConfig
from tests.helpers import ROOT, Golden, run_cli

Reference = Callable[..., str]
STUB = ('torchsummaryX',)
TIGHT = CompareConfig(bound=1e-11)
CLASS = 'class FMEN(nn.Module):'
INIT = 'def __init__(self, args):'

# (changes, settings of the probe, message)
FAULTY: dict[str, tuple[list[tuple[str, str]], dict[str, Any], str]] = {
    'import': ([], {'stubs': ()}, "needs the module 'torchsummaryX'.*--stub torchsummaryX"),
    'syntax': ([('lrelu_value =', 'lrelu_value')], {}, 'failed while being imported: SyntaxError'),
    'exit': ([(CLASS, f'exit(3)\n\n\n{CLASS}')], {}, r'called exit\(3\) while being imported'),
    'exit later': ([('return self.tail(h)', 'exit()')], {}, r'called exit\(None\) while computing'),
    'argument': ([(INIT, 'def __init__(self, args, depth):')], {}, "needs the argument 'depth'"),
    'unknown': ([], {'arguments': {'depth': 3}, 'name': 'summary'}, 'returned a NoneType'),
    'tuple': ([('return self.tail(h)', 'return self.tail(h), h')], {}, 'returned a tuple of 2'),
    'shape': ([('return self.tail(h)', 'return h')], {}, r'returned \[1, 6, 1, 1\] .* an upscale'),
    'gpu': (
        [
            (
                'nn.Conv2d(n, n, 3, padding=1)\n        self.tail',
                'nn.Conv2d(n, n, 3).cuda()\n        self.tail',
            )
        ],
        {},
        'failed while being constructed: .*(CUDA|NVIDIA)',
    ),
    'name': ([], {'name': 'EDSR'}, "defines no 'EDSR'; it has the classes RRRB, ERB, HFAB, FMEN"),
    'no module': ([], {'name': 'lrelu_value'}, 'is a float; expected a class or function'),
}


@pytest.mark.parity
@pytest.mark.parametrize('name', FAULTY)
def test_a_faulty_reference_is_one_clear_line(name: str, probed: Callable[..., Dump]) -> None:
    from fmen_jax.parity.probe import ProbeError

    changes, settings, message = FAULTY[name]
    with pytest.raises(ProbeError, match=message) as caught:
        probed(*changes, **settings)
    assert '\n' not in str(caught.value)


@pytest.mark.parity
def test_parameters_in_bfloat16_are_recorded_in_float32(probed: Callable[..., Dump]) -> None:
    lower = ('self.lr_conv =', 'self.bfloat16()\n        self.lr_conv =')
    weight = probed(lower, dtypes=('float64',)).arrays['state/head.weight']
    assert weight.dtype == np.float32
    np.testing.assert_array_equal(weight, weight.astype(jnp.bfloat16))


@pytest.mark.parity
def test_parameters_elsewhere_are_moved_and_printing_is_noted(probed: Callable[..., Dump]) -> None:
    changes = [
        ('self.scale = scale', "print('hello')\n        self.scale = scale"),
        ('x = self.head(x)', "print('again')\n        x = self.head(x)"),
    ]
    notes = probed(*changes, dtypes=('float64',)).meta['notes']
    assert notes == ["the reference printed 4 lines to stdout, first: 'hello'"]


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ('config', 'dtype'),
    [(RFDNConfig(n_feats=8, blocks=1), jnp.float32), (RLFNConfig(4, 6, 6, 4, 1), jnp.bfloat16)],
)
def test_the_rivals_equal_their_builtin_references(
    config: Any, dtype: Any, torch_python: str
) -> None:
    variables = jax.tree.map(lambda a: a.astype(dtype), initial_variables(config, 'deploy'))
    network = Network(config, 'deploy', variables)
    dump = run_reference(network, 'builtin', config=ReferenceConfig(python=torch_python))
    assert len(assert_parity(network, dump).stage(WEIGHTS).rows) == len(network.state_dict())


@pytest.mark.slow
@pytest.mark.parity
def test_the_builtin_reference_on_published_weights(
    shared: Callable[[str], Path], torch_python: str
) -> None:
    """Our PyTorch code, which reads the published file by itself.

    The negative control of `assert_parity` changes one weight, which every stage has to notice.
    """
    path = shared('official/fmen_s_x4_github.pt')
    network = fmen_jax.load(path)
    dump = run_reference(network, 'builtin', path, ReferenceConfig(python=torch_python))
    report = assert_parity(network, dump, TIGHT)
    assert len(report.stage(WEIGHTS).rows) == len(network.state_dict())
    assert max(row.ratio or 0 for row in report.stage(NOISE).rows) <= 3


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parity
def test_the_builtin_reference_in_training(tiny_x2: Golden, torch_python: str) -> None:
    """A train graph with the weights of the golden file, which published code has trained."""
    ported = porting.to_variables(tiny_x2.below('train/'))
    network = Network(ported.config, 'expanded', ported.variables)
    config = ReferenceConfig(python=torch_python, steps=5)
    report = assert_parity(network, run_reference(network, 'builtin', None, config), TIGHT)
    count = len(network.state_dict())
    assert len(report.stage(TRAIN).rows) == 2 + count
    assert len(report.stage(STEPS).rows) == 2 * 5 + count
    noise = [row.name for row in report.stage(TRAIN).rows if row.note == 'noise only']
    assert all(name.endswith(('bn2.bias', 'excitate.bias')) for name in noise)


def test_there_is_no_builtin_reference_for_variants() -> None:
    config = VariantConfig(n_feats=8, mid_feats=6, down_blocks=0, up_blocks=(1,))
    network = Network(config, 'deploy', initial_variables(config, 'deploy'))
    with pytest.raises(InputError, match='no builtin reference for VariantConfig, only for FMEN'):
        run_reference(network, 'builtin')


@pytest.mark.slow
@pytest.mark.parity
def test_arguments_by_name_and_objects(network: Network, probed: Callable[..., Dump]) -> None:
    factory = """def make(n_feats, scale, width=1, **rest):
    from types import SimpleNamespace
    assert width == 2
    return FMEN(SimpleNamespace(n_feats=n_feats, scale=[scale], rgb_range=255, **rest))


"""
    append = (CLASS, factory + CLASS)
    dump = probed(append, name='make', arguments={'width': 2}, dtypes=('float64',))
    assert assert_parity(network, dump).equal


@pytest.mark.slow
@pytest.mark.parity
def test_a_hang_and_a_hard_exit(network: Network, reference: Reference, torch_python: str) -> None:
    hang = ReferenceConfig(stubs=STUB, python=torch_python, timeout=2)
    with pytest.raises(InputError, match='did not finish within the time limit of 2 s'):
        run_reference(network, reference((CLASS, f'while True: pass\n{CLASS}')), None, hang)
    hard = reference((CLASS, f'import os; os._exit(0)\n{CLASS}'))
    config = ReferenceConfig(stubs=STUB, python=torch_python)
    with pytest.raises(InputError, match='ended with exit code 0 before it wrote results'):
        run_reference(network, hard, None, config)


def test_a_python_without_torch_or_none_at_all(
    network: Network, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / 'python'
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without site-packages
    bare.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    for name in (str(bare), './python'):
        with pytest.raises(InputError, match='has no PyTorch: name a Python that has it'):
            run_reference(network, reference(), None, ReferenceConfig(python=name))
    for name in ('/no/python', 'no_python', str(tmp_path)):
        with pytest.raises(InputError, match=f'--python is {name!r}, which is not an exec'):
            run_reference(network, reference(), None, ReferenceConfig(python=name))
    bare.write_bytes(b'\x7fELF')
    with pytest.raises(InputError, match='cannot be run as --python: Exec format error'):
        run_reference(network, reference(), None, ReferenceConfig(python=str(bare)))
    with pytest.raises(InputError, match='no such reference; expected FILE.py:NAME'):
        run_reference(network, 'nothing.py:FMEN')
    with pytest.raises(InputError, match='not a dump of a reference'):
        Dump(tmp_path / 'no.npz')
    np.savez(tmp_path / 'no.npz', a=np.array([None], object))
    with pytest.raises(InputError, match='not a dump of a reference .*allow_pickle'):
        Dump(tmp_path / 'no.npz')


@pytest.mark.parametrize('groups', [True, False])
def test_the_time_limit_holds_with_and_without_process_groups(
    groups: bool,
    network: Network,
    reference: Reference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Windows has no `os.killpg`."""
    if not groups:
        monkeypatch.delattr(os, 'killpg')
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\nexec sleep 60\n')
    python.chmod(0o755)
    start = time.monotonic()
    with pytest.raises(InputError, match='did not finish within the time limit of 0.5 s'):
        run_reference(network, reference(), None, ReferenceConfig(python=str(python), timeout=0.5))
    assert time.monotonic() - start < 50


def test_a_process_that_outlives_the_reference(
    network: Network, reference: Reference, tmp_path: Path
) -> None:
    """It is in a session of its own and keeps stderr open."""
    python = tmp_path / 'python'
    start = "import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True)"
    python.write_text(f'#!{sys.executable} -S\n{start}\nraise SystemExit("error: it is gone")\n')
    python.chmod(0o755)
    with pytest.raises(InputError, match='their_code.py:FMEN: it is gone'):
        run_reference(network, reference(), None, ReferenceConfig(python=str(python), timeout=30))


@pytest.mark.parametrize('value', [math.inf, [math.nan], {'a': object()}])
def test_arguments_that_a_script_cannot_contain(value: Any, network: Network) -> None:
    with pytest.raises(
        InputError, match="the argument 'x' of the reference is .*; expected a Pyth"
    ):
        probe_settings(network, ReferenceConfig(arguments={'x': value}))


@pytest.mark.parametrize('shape', [(1, 9, 3), (9, 1, 3), (9, 9, 1)])
def test_pictures_that_do_not_fit_the_network(shape: tuple[int, ...], network: Network) -> None:
    with pytest.raises(
        InputError, match=r'picture p is \[.*; expected \[H, W, 3\], with 2 or more'
    ):
        make_inputs(network, 1, {'p': np.zeros(shape, np.uint8)})


@pytest.mark.slow
@pytest.mark.parity
def test_the_written_probe_runs_without_this_package(
    network: Network, weights_file: Path, reference: Reference, torch_python: str, tmp_path: Path
) -> None:
    """Also: torch is absent where JAX is, and JAX where torch is."""
    script, output = tmp_path / 'probe.py', tmp_path / 'dump.npz'
    write_probe(script, network, ReferenceConfig(stubs=STUB))
    block = 'import sys; sys.modules.update(jax=None, fmen_jax=None); sys.argv = sys.argv[1:]; '
    code = f"{block}import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [torch_python, '-c', code, script, weights_file, reference(), output]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert_parity(network, output, TIGHT)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parity
def test_two_environments(
    weights_file: Path, reference: Reference, torch_python: str, tmp_path: Path
) -> None:
    """The command in a process without torch, the reference in a Python that has it."""
    absent = tmp_path / 'absent'
    absent.mkdir()
    (absent / 'torch.py').write_text("raise ModuleNotFoundError('no torch in this process')")
    code = (
        'import sys; sys.path.insert(0, sys.argv[1]); from fmen_jax.cli import main; '
        'main(sys.argv[2:])'
    )
    arguments = [
        *('parity', weights_file, '--reference', reference(), '--stub', 'torchsummaryX'),
        *('--python', torch_python, '--graph', 'collapsed', '--dtype', 'float64'),
    ]
    found = subprocess.run(
        [sys.executable, '-c', code, str(absent), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'},
        cwd=tmp_path,
    )
    assert (found.returncode, found.stderr) == (0, '')
    assert found.stdout.splitlines()[-1] == 'verdict: equal'


def test_wrong_usage(
    weights_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli('parity', weights_file, '--arg', 'x') == 2
    assert "--arg 'x' is not KEY=VALUE" in capsys.readouterr().err
    assert run_cli('parity', weights_file, '--html', 'page.txt') == 2
    assert "the file extension '.txt' is not that of a page" in capsys.readouterr().err
    assert run_cli('parity', weights_file, '--reference', tmp_path / 'none.npz') == 2
    assert run_cli('parity', tmp_path / 'none.pt') == 2
    assert run_cli('parity', weights_file, '--steps', '-1') == 2
    assert '--steps is -1; expected 0 or more' in capsys.readouterr().err
    assert run_cli('parity', weights_file, '--dtype', 'float32') == 2
    assert '--dtype is float32; expected float64 among its values' in capsys.readouterr().err
    assert run_cli('parity', weights_file, '--arg', 'x=1e999') == 2
    assert "the argument 'x' of the reference is inf" in capsys.readouterr().err
    script = tmp_path / 'probe.py'
    given = ['{[]:1}', f'{"(" * 9999}', '-' * 99999 + '1']
    options = [f'x{i}={text}' for i, text in enumerate(given)]
    assert run_cli('parity', weights_file, '--write-probe', script, '--arg', *options) == 0
    assert 'CHECKPOINT FILE.py:NAME DUMP.npz' in capsys.readouterr().out
    compile(script.read_text(), str(script), 'exec')
    assert all(f"'x{i}': {text!r}" in script.read_text() for i, text in enumerate(given))


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        *(('--timeout', value) for value in ('inf', 'nan', '0', '-1', '3e6')),
        *(('--bound', value) for value in ('inf', 'nan', '-1')),
    ],
)
def test_limits_out_of_range(
    option: str, value: str, weights_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli('parity', weights_file, '--reference', 'none.npz', option, value) == 2
    assert f'{option} is {float(value)}; expected ' in capsys.readouterr().err


def test_an_unforeseen_error_is_not_a_difference(
    weights_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError('unforeseen')

    monkeypatch.setattr('fmen_jax.cli.parity.load', fail)
    assert run_cli('parity', weights_file) == 2
    error = capsys.readouterr().err
    assert error.startswith('Traceback')
    assert error.endswith('RuntimeError: unforeseen\n')
    monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
    monkeypatch.setattr('jax.default_backend', fail)
    assert run_cli('parity', weights_file) == 2
    assert 'error: JAX_PLATFORMS is cuda, but JAX cannot' in capsys.readouterr().err
