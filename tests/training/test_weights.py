"""The weights that a run starts from."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from fmen_jax import porting
from fmen_jax.config import Experiment
from fmen_jax.errors import InputError
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.training.weights import first_variables
from tests.conftest import Golden


def test_initial_weights_of_another_scale_and_of_folded_weights(
    tiny_x2: Golden, weights: Path
) -> None:
    ported = porting.to_variables(tiny_x2.below('train/'))
    for scale in (2, 3):
        model = dataclasses.replace(ported.config, scale=scale)
        experiment = Experiment(model=model, init_from=str(weights))
        variables = first_variables(experiment)
        for name, given in ported.variables['params'].items():
            same = jax.tree.leaves(
                jax.tree.map(np.array_equal, variables['params'][name], given)
                if name != 'tail_0' or scale == 2
                else [variables['params'][name]['kernel'].shape[3] == 27]
            )
            assert all(same), name
    deploy = dataclasses.replace(experiment, graph='deploy')
    assert set(first_variables(deploy)) == {'params'}
    with pytest.raises(InputError, match='is a train graph of .*; expected one of'):
        first_variables(Experiment(model=FMENConfig(), init_from=str(weights)))
