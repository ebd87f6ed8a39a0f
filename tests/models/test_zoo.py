"""What networks cost, against the figures that were published (../shared/PAPER.md)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmen_jax.errors import InputError
from fmen_jax.models import zoo
from fmen_jax.models.cost import count_cost
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.initial import initial_variables


def test_fmen_s_is_the_network_of_ntire_2022() -> None:
    config = zoo.config('fmen_s', scale=4)
    cost = count_cost(config.build('deploy'), 256, 256)
    assert cost.parameters == 341_066
    assert cost.convolutions == 34
    assert round(cost.multiply_adds / 1e9, 2) == 22.28
    assert round(cost.activations / 1e6, 2) == 72.09
    assert config.receptive_radius == 34
    assert count_cost(config.build('expanded'), 8, 8).parameters == 1_045_866


def test_training_collapsed_costs_what_the_paper_note_says() -> None:
    config = zoo.config('fmen_s')
    pixels = 10 * 10
    assert count_cost(config.build('deploy'), 10, 10).multiply_adds == 339_966 * pixels
    assert count_cost(config.build('collapsed'), 10, 10).multiply_adds == 339_966 * pixels
    # The expanded graph's 1x1 convs see no border, so its count is exact per pixel too.
    assert count_cost(config.build('expanded'), 10, 10).multiply_adds == 1_041_310 * pixels


@pytest.mark.parametrize(
    ('scale', 'size', 'parameters', 'multiply_adds'),
    [(2, (360, 640), 748, 172.0), (3, (240, 426), 757, 77.2), (4, (180, 320), 769, 44.2)],
)
def test_the_reconstruction_matches_the_published_size(
    scale: int, size: tuple[int, int], parameters: int, multiply_adds: float
) -> None:
    cost = count_cost(zoo.config('fmen', scale=scale).build('deploy'), *size)
    assert cost.parameters // 1000 == parameters
    assert int(cost.multiply_adds / 1e8) / 10 == multiply_adds  # the paper truncates


def test_names() -> None:
    assert zoo.name_of(zoo.config('fmen', scale=3)) == 'fmen'
    assert zoo.name_of(zoo.config('fmen_s', scale=2)) == 'fmen_s'
    with pytest.raises(InputError, match="no network is named 'fmem'; expected one of fmen_s"):
        zoo.config('fmem')


def test_receptive_radius_is_the_reach_of_a_pixel() -> None:
    config = FMENConfig(scale=2, n_feats=6, mid_feats=6, down_blocks=1, up_blocks=(1, 2))
    radius = config.receptive_radius
    module = config.build('deploy')
    with jax.enable_x64(True):
        x = jax.random.uniform(jax.random.key(0), (1, 1, 2 * radius + 9, 3)) * 255
        variables = jax.tree.map(np.float64, initial_variables(config, 'deploy'))
        middle = radius + 4
        moved = x.at[0, 0, middle].add(50.0)
        apply = jax.jit(module.apply)
        change = jnp.abs(apply(variables, moved) - apply(variables, x)).max((0, 1, 3))
    reached = np.nonzero(np.asarray(change))[0] // config.scale
    assert int(reached.min()) == middle - radius
    assert int(reached.max()) == middle + radius
