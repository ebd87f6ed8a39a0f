"""FMEN against the published implementation (tests/golden), in float64."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmen_jax.errors import InputError
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.layers import Graph
from fmen_jax.network import Network
from fmen_jax.parity import assert_parity
from fmen_jax.parity.stages import FORWARD, STEPS, TRAIN, CompareConfig
from tests.helpers import Golden, assert_close, golden_dump, train_variables

pytestmark = pytest.mark.usefixtures('x64')

# Shares of the range; equal networks differ by some 1e-14 (docs/parity.md).
BOUNDS = CompareConfig(bound=1e-12, step_bound=1e-9, float32_bound=2e-5)

train_graphs = pytest.mark.parametrize('graph', ['expanded', 'collapsed'])


def test_configuration_is_found_in_the_checkpoint(tiny: Golden) -> None:
    config, _ = train_variables(tiny)
    expected = dict(tiny.config)
    expected['scale'] = expected['scale'][0]
    del expected['rgb_range']
    assert dataclasses.asdict(config) == {**expected, 'up_blocks': tuple(expected['up_blocks'])}


@pytest.mark.slow
@pytest.mark.parity
@train_graphs
def test_the_published_train_code(tiny: Golden, graph: Graph) -> None:
    """Every block, the gradients of the first step, and the trajectory of all steps.

    The negative control of `assert_parity` changes one weight, which every stage has to notice.
    """
    config, variables = train_variables(tiny)
    report = assert_parity(Network(config, graph, variables), golden_dump(tiny), BOUNDS)
    blocks = {name for name in tiny.below('eval/inter/') if name != 'warmup'}  # = warmup.1
    stages = {stage.name: {row.name: row for row in stage.rows} for stage in report.stages}
    assert stages[FORWARD].keys() == blocks | {''}
    assert stages[TRAIN].keys() >= {f'grad/{key}' for key in tiny.below('steps/grad0/')}
    final, losses = tiny.below('steps/final/'), tiny.arrays['steps/loss']
    assert any(key.endswith('num_batches_tracked') for key in final)
    assert len(stages[STEPS]) == len(final) + 2 * len(losses)
    for name, bound in ((FORWARD, 1e-9), (TRAIN, 1e-10)):
        assert max(row.max_abs for row in stages[name].values()) <= bound
    # Adam divides gradients whose true value is zero, which are noise of 1e-18, by themselves:
    # these alone may differ by more, and nothing depends on them.
    kept = [row for row in stages[STEPS].values() if row.note != 'noise only']
    assert {key for key in final if key not in [row.name for row in kept]} == {
        key for key in final if key.endswith(('excitate.bias', 'bn2.bias'))
    }
    assert max(row.max_abs for row in kept if 'float32' not in row.name) <= 1e-8


def test_attention_maps_are_reachable(tiny: Golden) -> None:
    config, variables = train_variables(tiny)
    _, captured = config.build('collapsed').apply(
        variables, tiny.image('eval/x'), mutable=['intermediates']
    )
    maps = jax.tree.leaves(captured)
    assert len(maps) == 1 + config.down_blocks
    for attention in maps:
        assert attention.shape == (*tiny.image('eval/x').shape[:3], config.n_feats)
        assert 0 <= attention.min() < attention.max() <= 1


def test_bfloat16_runs_near_float32(tiny: Golden) -> None:
    config, variables = train_variables(tiny)
    variables = jax.tree.map(lambda a: a.astype(jnp.float32) if a.ndim else a, variables)
    x = tiny.image('eval/x').astype(jnp.bfloat16)
    for graph in ('expanded', 'collapsed'):
        y = config.build(graph).apply(variables, x)
        assert y.dtype == jnp.bfloat16
        # 8 bits of mantissa through some 20 layers
        assert_close(y.astype(float), tiny.image('eval/y'), 0.05 * np.ptp(tiny.image('eval/y')))


def test_another_number_of_colors_is_refused() -> None:
    config = FMENConfig(n_feats=8, mid_feats=5, down_blocks=1, up_blocks=(1, 1), n_colors=1)
    module = config.build('deploy')
    key, gray = jax.random.key(0), jnp.zeros((1, 4, 4, 1))
    variables = jax.eval_shape(module.init, key, gray)
    assert jax.eval_shape(module.apply, variables, gray).shape[3] == 1  # pyright: ignore
    with pytest.raises(InputError, match='x has 3 channels; expected 1'):
        jax.eval_shape(module.apply, variables, jnp.zeros((1, 4, 4, 3)))


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('up_blocks', (2, 1), 'up_blocks has 2 numbers.*expected 5'),
        ('mid_feats', 4, 'mid_feats is 4; expected 5 to 4096'),
        ('scale', 0, 'scale is 0; expected 1 to 16'),
    ],
)
def test_impossible_configurations_are_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(FMENConfig(), **{field: value})
