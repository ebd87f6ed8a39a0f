"""The effective receptive field of known kernels and of a network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fmen_jax.errors import InputError
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.initial import initial_variables
from fmen_jax.network import Network
from fmen_jax.research.receptive_field import ReceptiveField, effective_receptive_field

IMAGES = np.random.default_rng(0).uniform(0, 255, (3, 15, 17, 3)).astype(np.float32)


def filtered(kernel: np.ndarray, x: jax.Array) -> jax.Array:
    """The same kernel for each channel, by JAX's own convolution."""
    weights = jnp.tile(jnp.asarray(kernel, x.dtype)[..., None, None], (1, 1, 1, x.shape[3]))
    return lax.conv_general_dilated(
        x,
        weights,
        (1, 1),
        'SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=x.shape[3],
    )


def test_field_of_a_known_kernel_is_its_magnitude() -> None:
    kernel = np.random.default_rng(1).normal(size=(5, 3))
    field = effective_receptive_field(lambda x: filtered(kernel, x), IMAGES, batch=2)
    expected = np.zeros((15, 17))
    expected[5:10, 7:10] = 3 * np.abs(kernel)
    np.testing.assert_allclose(field.magnitude, expected, rtol=1e-6)  # float32
    assert field.center == (7, 8)
    assert (field.radius, field.is_cut_off) == (2, False)


def test_sides_of_a_known_field() -> None:
    magnitude = np.zeros((9, 9))
    magnitude[4, 4], magnitude[4, 5], magnitude[2, 4], magnitude[1, 1] = 50, 45, 4, 1
    field = ReceptiveField(magnitude, (4, 4))
    assert [field.side(share) for share in (0.5, 0.51, 0.95, 0.99, 1.0)] == [1, 3, 3, 5, 7]
    assert (field.radius, field.is_cut_off) == (3, False)
    with pytest.raises(InputError, match='expected 0 to 1'):
        field.side(99)


def test_radius_of_a_network_is_the_one_that_tiles_use() -> None:
    config = FMENConfig(scale=3, n_feats=8, mid_feats=6, down_blocks=1, up_blocks=(0, 1))
    net = Network(config, 'deploy', initial_variables(config, 'deploy'))
    assert config.receptive_radius == 12
    images = np.random.default_rng(0).uniform(0, 255, (2, 27, 27, 3)).astype(np.float32)
    field = effective_receptive_field(net, images)
    assert (field.radius, field.is_cut_off, field.center) == (12, False, (13, 13))
    assert effective_receptive_field(net, images[:, 2:-2, 2:-2]).is_cut_off


def test_networks_that_see_everything_are_cut_off() -> None:
    field = effective_receptive_field(lambda x: x * x.mean((1, 2), keepdims=True), IMAGES)
    assert field.is_cut_off


def test_images_of_different_shapes_are_refused() -> None:
    with pytest.raises(InputError, match='all of one shape'):
        effective_receptive_field(lambda x: x, [IMAGES[0], IMAGES[0, 1:]])
    with pytest.raises(InputError, match='at least one'):
        effective_receptive_field(lambda x: x, [])
