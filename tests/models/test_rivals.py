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
from tests.helpers import ROOT, assert_close, corrupted, differs, writable

RIVALS = [('rfdn', 'e_rfdn_x4.pth', RFDNConfig()), ('rlfn', 'rlfn_x4_ntire2022.pth', RLFNConfig())]
rivals = pytest.mark.parametrize(('name', 'file', 'config'), RIVALS)


@pytest.fixture(scope='module')
def figures() -> dict[str, np.ndarray]:
    with np.load(ROOT / 'tests/golden/official_x4.npz') as file:
        return dict(file)


@pytest.mark.parity
@rivals
@pytest.mark.parametrize('dtype', [np.float64, np.float32])
def test_published_output(
    name: str, file: str, config: Any, dtype: Any, figures: Any, shared: Callable[[str], Path]
) -> None:
    net = fmen_jax.load(shared(f'official/{file}'))
    assert net.config == config
    expected = figures[name]
    with jax.enable_x64(dtype == np.float64):
        x = figures['x'][None].astype(dtype)
        # float32: of the output range, over some 40 to 60 layers
        bound = 1e-8 if dtype == np.float64 else 2e-5 * np.ptp(expected)
        assert_close(net(x)[0], expected, bound)
        broken = dataclasses.replace(net, variables=corrupted(net.variables, by=0.1))
        assert differs(broken(x)[0], expected, bound)


@pytest.mark.parity
@rivals
@pytest.mark.parametrize('ending', ['.pth', '.safetensors'])
def test_round_trip(
    name: str, file: str, config: Any, ending: str, shared: Callable[[str], Path], tmp_path: Path
) -> None:
    original = porting.read(shared(f'official/{file}'))
    net = fmen_jax.load(shared(f'official/{file}'))
    assert net.fold() is net
    path = tmp_path / f'out{writable(ending)}'
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


@pytest.mark.parametrize('config', [RFDNConfig(n_feats=8, blocks=1), RLFNConfig(4, 6, 6, 4, 1)])
def test_least_size(config: Any) -> None:
    module = config.build()
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 15, 15, 3)))
    assert module.apply(variables, jnp.zeros((1, 15, 16, 3))).shape == (1, 60, 64, 3)
    for height, width in [(14, 40), (40, 14)]:
        with pytest.raises(InputError, match=f'the image is {width}x{height} .* need 15 or more'):
            module.apply(variables, jnp.zeros((1, height, width, 3)))


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
