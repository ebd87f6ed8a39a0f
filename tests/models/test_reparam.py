"""The fold: one network before and after, at every pixel."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmen_jax import porting
from fmen_jax.models.fmen import RRRB, FMENConfig
from fmen_jax.models.reparam import collapse, fold
from tests.helpers import Golden, assert_close, corrupted, differs, train_variables

pytestmark = pytest.mark.usefixtures('x64')

BOUND = 1e-9


@pytest.mark.parity
def test_fold_gives_the_published_deploy_checkpoint(tiny: Golden) -> None:
    config, variables = train_variables(tiny)
    expected = {k: v for k, v in tiny.below('deploy/').items() if k != 'y'}

    def run(variables: Any) -> tuple[Any, Any]:
        folded = jax.jit(fold)(variables)
        y = config.build('deploy').apply(folded, tiny.image('eval/x'))
        return porting.to_state_dict(folded, config, 'deploy'), y

    state, y = run(variables)
    assert list(state) == list(expected)
    assert_close(state, expected, BOUND)
    assert_close(y, tiny.image('deploy/y'), BOUND)
    state, y = run(corrupted(variables))
    assert differs(state, expected, BOUND)
    assert differs(y, tiny.image('deploy/y'), BOUND)


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


@pytest.mark.parametrize(
    ('size', 'scale', 'blocks'),
    [
        ((1, 1), 2, (1, 2, 0)),
        ((1, 7), 3, (2, 1, 1)),
        ((2, 3), 4, (1, 1, 1)),
        ((8, 5), 2, (1, 1, 1)),
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
