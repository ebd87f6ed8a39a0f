"""Maps, ranges and saturation inside a network."""

from pathlib import Path

import jax
import numpy as np
import pytest

import fmen_jax
from fmen_jax.models.attention import ATTENTION
from fmen_jax.models.initial import initial_variables
from fmen_jax.models.rlfn import RLFNConfig
from fmen_jax.models.variant import VariantConfig
from fmen_jax.models.zoo import config
from fmen_jax.research.activations import (
    channel_ranges,
    mean_map,
    observe,
    range_of,
    saturation_of,
)
from tests.helpers import Golden, assert_close

X = np.random.default_rng(0).uniform(0, 255, (2, 17, 16, 3)).astype(np.float32)


def test_blocks_of_an_fmen_are_the_published_ones(weights: Path, tiny_x2: Golden) -> None:
    net = fmen_jax.load(weights)
    x = tiny_x2.image('eval/x').astype(np.float32)
    seen = observe(net.module, net.variables, x)
    names = list(seen.outputs)
    blocks = [name for name in names if '/' not in name]
    count = net.config.down_blocks
    pairs = [name for i in range(count) for name in (f'ERBs_{i}', f'HFABs_{i}')]
    assert blocks == ['head', 'warmup_0', 'warmup_1', *pairs, 'lr_conv', 'tail_0']
    for name, published in (('HFABs_0', 'HFABs.0'), ('ERBs_0', 'ERBs.0'), ('head', 'head')):
        expected = tiny_x2.image(f'eval/inter/{published}')
        assert_close(seen.outputs[name], expected, 2e-5 * np.ptp(expected))  # float32
    assert list(seen.attention) == ['warmup_1', *(f'HFABs_{i}' for i in range(count))]
    for name, attention in seen.attention.items():
        assert_close(attention * seen.inputs[name], seen.outputs[name], 1e-5)
        assert 0 <= attention.min() < attention.max() <= 1


def test_attention_of_rivals_is_found() -> None:
    rival = config('rlfn')
    assert isinstance(rival, RLFNConfig)
    shapes = jax.eval_shape(rival.build().init, jax.random.key(0), X)
    generator = np.random.default_rng(0)
    draw = lambda a: generator.normal(0, 0.05, a.shape).astype(np.float32)  # noqa: E731
    seen = observe(rival.build(), jax.tree.map(draw, shapes), X)
    assert list(seen.attention) == [f'B{i}/esa' for i in range(1, 5)]
    assert_close(seen.attention['B2/esa'] * seen.inputs['B2/esa'], seen.outputs['B2/esa'], 1e-4)


@pytest.mark.parametrize('name', [name for name in ATTENTION if name != 'none'])
def test_attention_of_every_kind_is_in_0_to_1(name: str) -> None:
    config = VariantConfig(2, attention=name, n_feats=8, mid_feats=6, down_blocks=0, up_blocks=(0,))
    seen = observe(config.build(), initial_variables(config, 'deploy'), X)
    (path,) = seen.attention
    attention = seen.attention[path]
    assert 0 <= attention.min() < attention.max() <= 1
    if name == 'spab':  # its gate is the sigmoid minus 0.5, but the sigmoid says if it is stuck
        assert_close(attention, jax.nn.sigmoid(seen.inputs[path]), 1e-6)


def test_mean_maps_are_between_minus_one_and_one() -> None:
    features = np.arange(24.0).reshape(2, 3, 4)
    found = mean_map(features)
    np.testing.assert_allclose(found, [[-1, -0.6, -0.2], [0.2, 0.6, 1]])
    assert not mean_map(np.ones((2, 3, 4))).any()


def test_ranges() -> None:
    values = np.array([[3.0, -4.0], [0.0, 70000.0]], np.float32)
    found = range_of(values)
    assert (found.min, found.max, found.outside_float16) == (-4, 70000, 0.25)
    assert found.rms == pytest.approx(35000.0, rel=1e-6)
    assert [r.max for r in channel_ranges(values)] == [3, 70000]
    assert range_of(np.array([np.nan, 1.0])).outside_float16 == 0.5


def test_saturation() -> None:
    found = saturation_of(np.array([0.01, 0.04, 0.5, 0.96]))
    assert (found.low, found.high) == (0.5, 0.25)
    assert found.mean == pytest.approx(0.3775)
