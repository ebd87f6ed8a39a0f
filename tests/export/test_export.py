"""Exported networks compute what JAX computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
import skimage.data

from fmen_jax import porting
from fmen_jax.errors import InputError
from fmen_jax.export.onnx import to_onnx
from fmen_jax.export.stablehlo import to_stablehlo
from fmen_jax.models import zoo
from fmen_jax.models.initial import initial_variables
from fmen_jax.models.rfdn import RFDNConfig
from fmen_jax.models.rlfn import RLFNConfig
from fmen_jax.models.variant import VariantConfig
from fmen_jax.network import Network, load
from tests.helpers import corrupted, run_cli

PHOTO = skimage.data.astronaut()[None, :33, 100:141].astype(np.float32)


def in_onnxruntime(model: bytes, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
    (y,) = session.run(None, {'lr': np.ascontiguousarray(x.transpose(0, 3, 1, 2))})
    return np.asarray(y).transpose(0, 2, 3, 1)


@pytest.mark.parity
@pytest.mark.parametrize('file', ['fmen_s_x4_github.pt', 'fmen_s_x4_ntire2022.pth'])
def test_onnx_of_published_weights(file: str, shared: Callable[[str], Path]) -> None:
    net = load(shared(f'official/{file}'))
    expected = np.asarray(net(PHOTO))
    model = to_onnx(net)
    bound = 2e-5 * 255  # float32 of two libraries over 34 layers
    assert np.abs(in_onnxruntime(model, PHOTO) - expected).max() < bound
    params = {
        **net.variables['params'],
        'tail_0': corrupted(net.variables['params']['tail_0'], 0.01),
    }
    broken = Network(net.config, 'deploy', {'params': params})
    assert np.abs(in_onnxruntime(to_onnx(broken), PHOTO) - expected).max() > bound


def test_onnx_takes_any_size_or_one(weights: Path, tmp_path: Path) -> None:
    net = load(weights)  # a train graph: folded on the way
    assert run_cli('export', weights, '-o', tmp_path / 'any.onnx') == 0
    model = (tmp_path / 'any.onnx').read_bytes()
    for x in (PHOTO, PHOTO[:, :7, :9].repeat(3, 0)):
        np.testing.assert_allclose(in_onnxruntime(model, x), net(x), rtol=0, atol=1e-2)
    given: Any = onnx.load(tmp_path / 'any.onnx')
    onnx.checker.check_model(given, full_check=True)
    kinds = {node.op_type for node in given.graph.node}
    assert kinds == {'Conv', 'LeakyRelu', 'Sigmoid', 'Mul', 'Add', 'DepthToSpace'}
    metadata = {entry.key: entry.value for entry in given.metadata_props}
    assert (metadata['scale'], metadata['range']) == ('2', '0..255 RGB')
    assert metadata['network'] == repr(net.config)
    assert len(metadata['weights_sha256']) == 64
    options = ('--shape', 1, 33, 41)
    assert run_cli('export', weights, '-o', tmp_path / 'one.onnx', *options) == 0
    fixed: Any = onnx.load(tmp_path / 'one.onnx')
    shapes = [
        [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*fixed.graph.input, *fixed.graph.output)
    ]
    assert shapes == [[1, 3, 33, 41], [1, 3, 66, 82]]


def test_stablehlo_runs_with_any_size_on_three_platforms(weights: Path, tmp_path: Path) -> None:
    assert run_cli('export', weights, '-o', tmp_path / 'a.stablehlo') == 0
    program = jax.export.deserialize(bytearray((tmp_path / 'a.stablehlo').read_bytes()))
    assert program.platforms == ('cpu', 'cuda', 'tpu')
    net = load(weights).fold()
    for x in (PHOTO, PHOTO[:, :7, :9].repeat(2, 0)):
        np.testing.assert_allclose(program.call(x), net(x), rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    'config',
    [
        RFDNConfig(n_feats=8, blocks=1),
        RLFNConfig(n_feats=8, blocks=1),
        VariantConfig(2, n_feats=5, mid_feats=5, down_blocks=0, up_blocks=(1,), attention='lia'),
    ],
    ids=lambda config: type(config).__name__,
)
def test_stablehlo_of_networks_with_a_minimum_size(config: Any) -> None:
    net = Network(config, 'deploy', initial_variables(config, 'deploy'))
    program = jax.export.deserialize(bytearray(to_stablehlo(net)))
    least = config.min_size
    for x in (PHOTO, PHOTO[:, :least, :least].repeat(2, 0)):
        np.testing.assert_allclose(program.call(x), net(x), rtol=0, atol=1e-2)
    with pytest.raises(ValueError, match='refining shapes'):
        program.call(PHOTO[:, : least - 1])


def test_safetensors_are_the_folded_weights(weights: Path, tmp_path: Path) -> None:
    assert run_cli('export', weights, '-o', tmp_path / 'a.safetensors') == 0
    found = porting.read(tmp_path / 'a.safetensors')
    for key, value in load(weights).fold().state_dict('github').items():
        np.testing.assert_array_equal(found[key], value)


def test_faults(weights: Path, tmp_path: Path, capsys: Any) -> None:
    assert run_cli('export', weights, '-o', tmp_path / 'a.tflite') == 2
    assert "'.tflite' is not that of an exported network" in capsys.readouterr().err
    assert run_cli('export', weights, '-o', tmp_path / 'a.pth', '--shape', 1, 2, 3) == 2
    assert 'a fixed shape is supported for .onnx only' in capsys.readouterr().err
    for option in (('--key-style', 'github'), ('--no-fold',)):
        assert run_cli('export', weights, '-o', tmp_path / 'a.onnx', *option) == 2
        assert '--no-fold are supported for checkpoints only' in capsys.readouterr().err
    for shape, message in (((0, 8, 8), 'N of the'), ((1, -5, 64), 'the smaller of H and W of the')):
        assert run_cli('export', weights, '-o', tmp_path / 'a.onnx', '--shape', *shape) == 2
        assert f'{message} shape is {min(shape)}; expected 1 or more' in capsys.readouterr().err
    rival = zoo.config('rlfn')
    with pytest.raises(InputError, match='the ONNX export does not support RLFNConfig'):
        to_onnx(Network(rival, 'deploy', {}))
