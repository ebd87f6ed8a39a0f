"""The weights that a run starts from, and what it leaves."""

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

import fmen_jax
from fmen_jax import porting
from fmen_jax.errors import FMENWarning, InputError
from fmen_jax.files import sha256
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.initial import initial_variables, resized_tail
from fmen_jax.training.experiment import Experiment, flat
from fmen_jax.training.optimizer import OptimConfig
from fmen_jax.training.results import first_variables
from tests.helpers import SHORT, Golden, SmokeRun


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
    with pytest.raises(InputError, match='contains weights of .*; expected those of'):
        first_variables(Experiment(model=FMENConfig(), init_from=str(weights)))
    folded = weights.with_name('folded.safetensors')
    fmen_jax.load(weights).fold().save(folded)
    with pytest.raises(InputError, match='contains folded weights, which cannot be trained'):
        first_variables(Experiment(model=ported.config, init_from=str(folded)))


def test_learning_rates_too_high_for_folded_weights_cause_a_warning() -> None:
    model = FMENConfig(scale=4)
    plain = Experiment(model=model, graph='deploy', init_from='fmen_s_x4')
    with pytest.warns(FMENWarning, match='training will probably diverge'):
        first_variables(plain)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        first_variables(dataclasses.replace(plain, optim=OptimConfig(relative=True)))


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


@pytest.mark.slow
@pytest.mark.usefixtures('compilation_cache')
def test_what_a_run_leaves(run: Callable[[str], SmokeRun]) -> None:
    made = run('run')
    experiment = made.experiment(**SHORT)
    weights = made.train(experiment)
    assert weights
    net = fmen_jax.load(weights)
    assert (net.config, net.graph) == (experiment.model, 'deploy')
    assert json.loads((made.workdir / 'config.json').read_text()) == flat(experiment)
    card = json.loads((made.workdir / 'card.json').read_text())
    assert card['sha256'] == sha256(weights)
    assert card['step'] == 4
    assert sorted(made.losses()) == [1, 2, 3, 4]
    unfolded = fmen_jax.load(made.workdir / 'train_weights.safetensors')
    assert unfolded.graph != 'deploy'
    again = unfolded.fold().variables  # float32 once more: the file has the parameters unfolded
    jax.tree.map(np.testing.assert_array_equal, again, net.variables)
