"""E-RFDN and RLFN against the published code, and all three as NTIRE 2022 counted them."""

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
from fmen_jax.errors import InputError
from fmen_jax.models import zoo
from fmen_jax.models.cost import count_cost, ntire_flops
from fmen_jax.models.rfdn import RFDNConfig
from fmen_jax.models.rlfn import RLFNConfig
from fmen_jax.parity import assert_parity, compare
from fmen_jax.parity.stages import COMPILED, FORWARD, NOISE, CompareConfig
from tests.helpers import corrupted, official_dump, writable

RIVALS = [('rfdn', 'e_rfdn_x4.pth', RFDNConfig()), ('rlfn', 'rlfn_x4_ntire2022.pth', RLFNConfig())]
# Shares of the range of some 300.
BOUNDS = CompareConfig(bound=1e-11, float32_bound=2e-5)

rivals = pytest.mark.parametrize(('name', 'file', 'config'), RIVALS)


@pytest.mark.slow
@pytest.mark.parity
@rivals
def test_published_output(name: str, file: str, config: Any, shared: Callable[[str], Path]) -> None:
    """In float64, and the compiled program in float32 over some 40 to 60 layers."""
    net = fmen_jax.load(shared(f'official/{file}'))
    assert net.config == config
    report = assert_parity(net, official_dump(name), BOUNDS)
    assert report.stage(FORWARD).worst.max_abs <= 1e-8
    assert {row.name for row in report.stage(NOISE).rows} == {'', COMPILED}
    broken = dataclasses.replace(net, variables=corrupted(net.variables, by=0.1))
    report = compare(broken, official_dump(name), BOUNDS)
    assert not any(row.equal for stage in report.stages for row in stage.rows)


@pytest.mark.parity
@rivals
@pytest.mark.parametrize('extension', ['.pth', '.safetensors'])
def test_round_trip(
    name: str, file: str, config: Any, extension: str, shared: Callable[[str], Path], tmp_path: Path
) -> None:
    original = porting.read(shared(f'official/{file}'))
    net = fmen_jax.load(shared(f'official/{file}'))
    assert net.fold() is net
    path = tmp_path / f'out{writable(extension)}'
    net.save(path)
    back = porting.read(path)
    assert list(back) == list(original)
    assert all(back[key].tobytes() == original[key].tobytes() for key in original)


@pytest.mark.parametrize(
    'config', [RFDNConfig(scale=3, n_feats=12, blocks=2), RLFNConfig(2, 6, 8, 4, 11)]
)
def test_any_configuration_is_found_again(config: Any) -> None:
    x = jnp.zeros((1, 15, 15, 3))
    like = jax.eval_shape(config.build().init, jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), like)
    state = porting.to_state_dict(variables, config, 'deploy')
    assert porting.to_variables(state).config == config
    first = next(iter(state))
    del state[first]
    with pytest.raises(InputError, match=f'missing: {first}') as caught:
        porting.to_variables(state)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ('shapes', 'message'),
    [
        (
            {'fea_conv.bias': 2, 'B1.c1_d.bias': 1, 'upsampler.0.bias': 48},
            'n_feats is 2; expected 4 to 4096',
        ),
        (
            {'fea_conv.bias': 8, 'B2.c1_d.bias': 4, 'upsampler.0.bias': 48},
            'missing: B1.c1_d.weight',
        ),
        ({'fea_conv.bias': 8, 'B2.c5.bias': 8, 'upsampler.0.bias': 48}, 'missing: B1.c1_r.weight'),
        (
            {f'B{i + 1}.c1_d.bias': 2 for i in range(1001)}
            | {'fea_conv.bias': 8, 'upsampler.0.bias': 48},
            'there are 1001 blocks BN; expected 1000 or fewer',
        ),
    ],
)
def test_state_dicts_that_do_not_make_a_network(shapes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        porting.to_variables({key: np.zeros(size, np.float32) for key, size in shapes.items()})


@pytest.mark.parametrize('network', [RFDNConfig, RLFNConfig])
def test_impossible_configurations_are_refused(network: Any) -> None:
    with pytest.raises(InputError, match='blocks is 1001; expected 1 to 1000'):
        network(blocks=1001)


@pytest.mark.parametrize('config', [RFDNConfig(n_feats=8, blocks=1), RLFNConfig(4, 6, 6, 4, 1)])
def test_least_size(config: Any) -> None:
    module = config.build()
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 15, 15, 3)))
    upscaled = jax.eval_shape(module.apply, variables, jnp.zeros((1, 15, 16, 3)))
    assert upscaled.shape == (1, 60, 64, 3)  # pyright: ignore
    for height, width in [(14, 40), (40, 14)]:
        with pytest.raises(InputError, match=f'the image is {width}x{height} .* need 15 or more'):
            jax.eval_shape(module.apply, variables, jnp.zeros((1, height, width, 3)))


@pytest.mark.parametrize(
    ('name', 'parameters', 'flops', 'activations', 'convolutions'),
    [  # ../shared/PAPER.md, NTIRE 2022, at 256x256, as printed there
        ('fmen_s', 0.341, 22.28, 72.09, 34),
        ('rlfn', 0.317, 19.70, 80.05, 39),
        ('e_rfdn', 0.433, 27.10, 112.03, 64),
    ],
)
def test_costs_are_those_ntire_2022_reported(
    name: str, parameters: float, flops: float, activations: float, convolutions: int
) -> None:
    config = zoo.config(name)
    cost = count_cost(config.build(), 256, 256)
    assert round(cost.parameters / 1e6, 3) == parameters
    assert round(ntire_flops(config, cost) / 1e9, 2) == flops
    assert round(cost.activations / 1e6, 2) == activations
    assert cost.convolutions == convolutions
