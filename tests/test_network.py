"""`load`, and the network it gives, against the published figures."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmen_jax
from fmen_jax import porting
from fmen_jax.cli import COMMANDS
from fmen_jax.errors import InputError
from fmen_jax.images.write import write_rgb8
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.parity import assert_parity, compare
from fmen_jax.parity.stages import COMPILED, FORWARD, NOISE, CompareConfig
from tests.helpers import ROOT, Golden, assert_close, corrupted, official_dump, run_cli

# Shares of the range of some 300.
BOUNDS = CompareConfig(bound=1e-11, float32_bound=2e-5)

NETWORKS = {'fmen_github': 'fmen_s_x4_github.pt', 'fmen_ntire': 'fmen_s_x4_ntire2022.pth'}


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize('name', NETWORKS)
def test_published_weights(name: str, shared: Callable[[str], Path]) -> None:
    """In float64, and the compiled program in float32 over 34 layers."""
    net = fmen_jax.load(shared(f'official/{NETWORKS[name]}'))
    report = assert_parity(net, official_dump(name), BOUNDS)
    assert report.stage(FORWARD).worst.max_abs <= 1e-8
    assert {row.name for row in report.stage(NOISE).rows} == {'', COMPILED}
    broken = dataclasses.replace(net, variables=corrupted(net.variables, by=0.1))
    report = compare(broken, official_dump(name), BOUNDS)
    assert not any(row.equal for stage in report.stages for row in stage.rows)


def test_the_dtype_is_that_of_the_image(weights: Path) -> None:
    net = fmen_jax.load(weights)
    assert net(np.zeros((1, 4, 4, 3), np.float32)).dtype == jnp.float32
    with pytest.raises(InputError, match='images are float64, which JAX would round to float32'):
        net(np.zeros((1, 4, 4, 3)))
    with jax.enable_x64(True):
        assert net(np.zeros((1, 4, 4, 3))).dtype == jnp.float64


def test_train_checkpoint_is_loaded_folded_and_saved(tiny: Golden, tmp_path: Path) -> None:
    path = tmp_path / 'train.safetensors'
    porting.write(path, tiny.below('train/'), {})
    net = fmen_jax.load(path)
    assert net.graph == 'collapsed'
    assert net.config.scale == tiny.config['scale'][0]
    x = tiny.image('eval/x').astype(np.float32)
    bound = 2e-5 * np.ptp(tiny.image('eval/y'))
    assert_close(net(x), tiny.image('eval/y'), bound)
    folded = net.fold()
    assert folded.graph == 'deploy'
    assert folded.fold() is folded
    assert_close(folded(x), tiny.image('deploy/y'), bound)
    expected = {k: v for k, v in tiny.below('deploy/').items() if k != 'y'}
    # Folded in float64 and rounded once to float32: half a unit in the last place.
    for key, array in folded.state_dict().items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected[key], rtol=2**-24, atol=1e-12)
    folded.save(tmp_path / 'deploy.safetensors')
    again = fmen_jax.load(str(tmp_path / 'deploy.safetensors'))
    np.testing.assert_array_equal(again(x), folded(x))


@pytest.mark.slow
def test_network_can_be_called_inside_transformations(weights: Path) -> None:
    net = fmen_jax.load(weights)
    x = np.random.default_rng(0).uniform(0, 255, (1, 6, 5, 3)).astype(np.float32)
    bound = 1e-5 * np.ptp(net(x))  # other compiler options round differently
    assert_close(jax.jit(net)(x), net(x), bound)
    direct = jax.grad(lambda x: net.module.apply(net.variables, x).sum())(x)
    for gradient in (jax.grad(lambda x: net(x).sum()), jax.jit(jax.grad(lambda x: net(x).sum()))):
        assert_close(gradient(x), direct, 1e-5 * np.ptp(direct))


@pytest.mark.parametrize(
    'x',
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((1, 4, 4, 1), np.float32),
        np.zeros((1, 4, 4, 3), int),
    ],
)
def test_wrong_arrays_are_refused(x: np.ndarray, tiny_x2: Golden, tmp_path: Path) -> None:
    path = tmp_path / 'net.safetensors'
    porting.write(path, tiny_x2.below('train/'), {})
    with pytest.raises(InputError, match=r'expected floats \[N, H, W, 3\] in 0..255'):
        fmen_jax.load(path)(x)


def test_products_have_the_precision_asked_for(tiny_x2: Golden) -> None:
    """What a CPU cannot show: the convolutions are lowered at the precision of the network."""
    ported = porting.to_variables(tiny_x2.below('train/'))
    x = jnp.zeros((1, 8, 8, 3))
    for precision, name in [('highest', 'HIGHEST'), ('default', 'DEFAULT')]:
        net = fmen_jax.Network(ported.config, ported.graph, ported.variables, precision=precision)
        text = jax.jit(net).lower(x).as_text()
        lines = [line for line in text.splitlines() if 'stablehlo.convolution' in line]
        assert len(lines) > 10
        assert all(
            (name in line) or (name == 'DEFAULT' and 'HIGHEST' not in line) for line in lines
        )


def test_float16_and_lists_are_refused(weights: Path) -> None:
    net = fmen_jax.load(weights)
    with pytest.raises(InputError, match='images are float16; expected'):
        net(np.zeros((1, 4, 4, 3), np.float16))
    with pytest.raises(InputError, match='images are a list; expected an array'):
        net([[0.0]])  # pyright: ignore


def test_errors_name_the_file(tmp_path: Path) -> None:
    porting.write(tmp_path / 'other.safetensors', {'conv.weight': np.zeros((3, 3))}, {})
    with pytest.raises(InputError, match='other.safetensors: these are not the weights'):
        fmen_jax.load(tmp_path / 'other.safetensors')


def test_neither_file_nor_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match='neither a file nor a name.*fmen_s_x4_github'):
        fmen_jax.load('fmen_s_x9')
    with pytest.raises(InputError, match='no such file'):
        fmen_jax.load(tmp_path / 'nothing.pt')


def test_jit_grad_and_vmap_go_through_the_module(tiny_x2: Golden) -> None:
    """What those who write their own functions do."""
    ported = porting.to_variables(tiny_x2.below('train/'))
    net = fmen_jax.Network(ported.config, ported.graph, ported.variables).fold()
    assert isinstance(net.config, FMENConfig)
    x = jnp.asarray(tiny_x2.image('eval/x'), jnp.float32)

    @jax.jit
    def loss(variables: Any) -> Any:
        return net.module.apply(variables, x).mean()

    gradients = jax.grad(loss)(net.variables)
    assert jax.tree.structure(gradients) == jax.tree.structure(net.variables)
    assert all(float(abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradients))


def test_upscale_takes_arrays_and_paths(weights: Path, tmp_path: Path) -> None:
    net = fmen_jax.load(weights)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
    y = np.asarray(net(pixels[None].astype(np.float32)))[0]
    expected = np.clip(np.rint(y), 0, 255).astype(np.uint8)
    # the network was folded, so another order of float32 sums: a tie may turn
    assert np.abs(fmen_jax.upscale(net, pixels).astype(int) - expected).max() <= 1
    write_rgb8(tmp_path / 'a.png', pixels)
    from_file = fmen_jax.upscale(net, tmp_path / 'a.png')
    np.testing.assert_array_equal(from_file, fmen_jax.upscale(net, pixels))
    assert fmen_jax.upscale(net, pixels[..., 0]).shape == (40, 62)
    assert fmen_jax.upscale(net, pixels, self_ensemble=True).shape == (40, 62, 3)
    with pytest.raises(InputError, match=r'pixels are float64\[2, 2, 1\]'):
        fmen_jax.upscale(net, np.zeros((2, 2)))


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(
    value: float, tiny_x2: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / 'damaged.safetensors'
    state = {key: array.copy() for key, array in tiny_x2.below('train/').items()}
    state['head.weight'].flat[5] = value
    state['ERBs.0.conv1.expand_conv.bias'][:2] = value
    porting.write(path, state, {})
    with pytest.raises(InputError, match=r'head.weight \(1 of \d+\), ERBs.0.*bias \(2 of'):
        fmen_jax.load(path)
    assert fmen_jax.load(path, allow_nonfinite=True).config.scale == 2
    output = ('-o', tmp_path / 'out.safetensors')
    assert run_cli('export', path, *output) == 2
    message = capsys.readouterr().err
    named = message[message.index('with the commands ') :]
    for command in COMMANDS:
        source = (ROOT / f'fmen_jax/cli/{command}.py').read_text()
        assert (command in named) == ('allow_nonfinite: bool' in source), command
    assert not output[1].exists()
    assert run_cli('export', path, *output, '--allow-nonfinite') == 0
    assert output[1].exists()
