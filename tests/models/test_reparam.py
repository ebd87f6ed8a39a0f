"""The fold: one network before and after, at every pixel."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmen_jax.models.fmen import RRRB, FMENConfig
from fmen_jax.models.reparam import collapse, fold
from fmen_jax.network import Network
from fmen_jax.parity import Report, compare
from fmen_jax.parity.stages import FORWARD, WEIGHTS, CompareConfig
from tests.helpers import (
    Golden,
    assert_close,
    corrupted,
    differs,
    golden_dump,
    train_variables,
)

pytestmark = pytest.mark.usefixtures('x64')

BOUND = 1e-9


@pytest.mark.slow
@pytest.mark.parity
def test_fold_gives_the_published_deploy_checkpoint(tiny: Golden) -> None:
    config, variables = train_variables(tiny)
    bounds = CompareConfig(bound=1e-12, weight_bound=1e-12)

    def run(variables: Any) -> Report:
        network = Network(config, 'deploy', jax.device_get(jax.jit(fold)(variables)))
        assert list(network.state_dict()) == [k for k in tiny.below('deploy/') if k != 'y']
        return compare(network, golden_dump(tiny, 'deploy/'), bounds)

    report = run(variables)
    assert report.equal, report.text()
    assert max(row.max_abs for stage in report.stages[:2] for row in stage.rows) <= BOUND
    report = run(corrupted(variables))
    assert not report.stage(WEIGHTS).equal
    assert not report.stage(FORWARD).equal


def random_variables(config: FMENConfig, seed: int = 0) -> Any:
    """A train graph in float64, its statistics, gains and shifts far from their initial values."""
    shape = (1, 1, 1, config.n_colors)
    tree = jax.eval_shape(config.build('expanded').init, jax.random.key(0), jnp.ones(shape))
    generator = np.random.default_rng(seed)

    def leaf(path: Any, like: Any) -> Any:
        if path[-1].key in ('scale', 'var'):
            return generator.uniform(0.5, 2, like.shape)
        if path[-1].key == 'kernel':
            return generator.normal(0, np.prod(like.shape[:3]) ** -0.5, like.shape)
        return generator.normal(0, 1, like.shape)

    return jax.tree_util.tree_map_with_path(leaf, tree)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('size', 'scale', 'blocks'),
    [
        ((1, 1), 2, (1, 2, 0)),
        ((1, 7), 3, (2, 1, 1)),
        ((2, 3), 4, (1, 1, 1)),
        pytest.param((8, 5), 2, (1, 1, 1), marks=pytest.mark.exhaustive),
        ((17, 23), 3, (1, 0, 2)),
    ],
)
def test_train_and_deploy_graph_agree_at_every_pixel(
    size: tuple[int, int], scale: int, blocks: tuple[int, ...]
) -> None:
    config = FMENConfig(
        scale=scale,
        n_feats=7,
        mid_feats=6,
        down_blocks=2,
        up_blocks=blocks,
        backbone_expand_ratio=3,
    )
    variables = random_variables(config)
    x = np.random.default_rng(1).uniform(0, 255, (2, *size, 3))
    expanded = jax.jit(config.build('expanded').apply)(variables, x)
    assert_close(jax.jit(config.build('collapsed').apply)(variables, x), expanded, BOUND)
    deploy = jax.jit(lambda variables: config.build('deploy').apply(fold(variables), x))
    assert_close(deploy(variables), expanded, BOUND)
    assert differs(deploy(corrupted(variables)), expanded, BOUND)


def test_collapse_is_the_block_and_has_its_gradients() -> None:
    x = jax.random.normal(jax.random.key(1), (2, 4, 5, 6))
    expanded, collapsed = RRRB(6, 2, 'expanded'), RRRB(6, 2, 'collapsed')
    variables = jax.tree.map(lambda a: a.astype(float), expanded.init(jax.random.key(0), x))

    def loss(module: RRRB) -> Any:
        return jax.value_and_grad(lambda v: jnp.sin(module.apply(v, x)).sum())(variables)

    assert_close(loss(collapsed), loss(expanded), 1e-10)
    kernel = jax.jit(collapse)(variables['params'])['kernel']
    assert kernel.shape == (3, 3, 6, 6)
