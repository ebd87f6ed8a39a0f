"""Variables before training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data

from fmen_jax.images.bicubic import imresize
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.initial import Start, initial_variables
from fmen_jax.models.layers import Graph

TINY = FMENConfig(scale=2, n_feats=30, mid_feats=20, down_blocks=1, up_blocks=(1, 1))


@pytest.mark.slow
@pytest.mark.parametrize('graph', ['expanded', 'collapsed', 'deploy'])
def test_shapes_and_bounds_are_those_of_module_init(graph: Graph) -> None:
    drawn = initial_variables(TINY, graph, seed=3)
    flax = TINY.build(graph).init(jax.random.key(0), jnp.zeros((1, 1, 1, 3)))

    def same(path: tuple, a: np.ndarray, b: jax.Array) -> None:
        name = jax.tree_util.keystr(path)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        if a.size >= 500:  # uniform in the same bounds
            assert np.abs(a).max() == pytest.approx(np.abs(b).max(), rel=0.02), name
            assert a.std() == pytest.approx(float(b.std()), rel=0.1), name
        elif 'bn' in name:
            np.testing.assert_array_equal(a, b)
        else:
            assert 0.3 < np.abs(a).max() / np.abs(b).max() < 3, name

    jax.tree.map_with_path(same, drawn, flax)
    again = initial_variables(TINY, graph, seed=3)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, drawn, again)))
    other = initial_variables(TINY, graph, seed=4)
    assert not np.array_equal(drawn['params']['head']['kernel'], other['params']['head']['kernel'])


def upscaled(scale: int, start: Start) -> tuple[np.ndarray, np.ndarray]:
    """What head and tail make of a photograph, and bicubic's; without the border."""
    config = FMENConfig(scale=scale, n_feats=30, mid_feats=6, down_blocks=0, up_blocks=(1,))
    variables = initial_variables(config, 'deploy', start=start)
    trunk = variables['params']['lr_conv']
    variables['params']['lr_conv'] = jax.tree.map(np.zeros_like, trunk)
    image = skimage.data.astronaut()[100:140, 200:230].astype(np.float32)
    output = config.build('deploy').apply(variables, image[None])
    border = 3 * scale
    inside = (slice(border, -border), slice(border, -border))
    return np.asarray(output)[0][inside], imresize(image, scale)[inside]


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_head_and_tail_begin_as_bicubic(scale: int) -> None:
    # float32 on values of 255 through two convolutions
    np.testing.assert_allclose(*upscaled(scale, 'bicubic'), rtol=0, atol=1e-2)
    assert np.abs(np.subtract(*upscaled(scale, 'pytorch'))).mean() > 20
