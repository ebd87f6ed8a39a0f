"""The weights that a run starts from."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from fmen_jax import porting
from fmen_jax.errors import InputError
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.initial import initial_variables, resized_tail
from fmen_jax.training.experiment import Experiment
from fmen_jax.training.results import first_variables
from tests.helpers import Golden


def test_initial_weights_of_another_scale_and_of_folded_weights(
    tiny_x2: Golden, weights: Path
) -> None:
    ported = porting.to_variables(tiny_x2.below('train/'))
    for scale in (2, 3):
        model = dataclasses.replace(ported.config, scale=scale)
        experiment = Experiment(model=model, init_from=str(weights))
        variables = first_variables(experiment)
        for name, given in ported.variables['params'].items():
            if name != 'tail_0' or scale == 2:
                same = jax.tree.map(np.array_equal, variables['params'][name], given)
                assert all(jax.tree.leaves(same)), name
        assert variables['params']['tail_0']['kernel'].shape[3] == 3 * scale**2
    deploy = dataclasses.replace(experiment, graph='deploy')
    assert set(first_variables(deploy)) == {'params'}
    with pytest.raises(InputError, match='is a train graph of .*; expected one of'):
        first_variables(Experiment(model=FMENConfig(), init_from=str(weights)))


def test_a_tail_of_another_scale_gives_means_of_areas() -> None:
    config = FMENConfig(n_feats=8, mid_feats=6, down_blocks=0, up_blocks=(1,))
    variables = initial_variables(config, 'deploy')
    x = np.random.default_rng(0).uniform(0, 255, (1, 7, 9, 3)).astype(np.float32)
    fine = np.asarray(config.build('deploy').apply(variables, x))
    for scale in (1, 2, 3):
        tail = resized_tail(variables['params']['tail_0'], 4, scale)
        smaller = {'params': variables['params'] | {'tail_0': tail}}
        coarse = dataclasses.replace(config, scale=scale).build('deploy').apply(smaller, x)
        # areas by way of a grid that both scales divide
        twelfths = fine.repeat(scale, 1).repeat(scale, 2)
        means = twelfths.reshape(1, 7 * scale, 4, 9 * scale, 4, 3).mean((2, 4))
        np.testing.assert_allclose(coarse, means, rtol=0, atol=1e-3)
