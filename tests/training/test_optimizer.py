"""Schedules and optimizers."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fmen_jax
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.initial import initial_variables
from fmen_jax.training.optimizer import (
    OptimConfig,
    make_optimizer,
    make_schedule,
    warn_of_large_updates,
)
from tests.helpers import assert_close


def test_the_papers_schedule_halves_every_fifth() -> None:
    rate = make_schedule(OptimConfig(), 1000)
    rates = [float(rate(step)) for step in (0, 199, 200, 399, 400, 799, 800, 999)]
    expected = [5e-4, 5e-4, 2.5e-4, 2.5e-4, 1.25e-4, 6.25e-5, 3.125e-5, 3.125e-5]
    assert_close(rates, expected, 1e-10)


def test_cosine_with_warm_up() -> None:
    config = OptimConfig(learning_rate=1e-3, schedule='cosine', warmup_steps=100, floor=0.01)
    rate = make_schedule(config, 1100)
    rates = [float(rate(step)) for step in (0, 50, 100, 600, 1100)]
    assert_close(rates, [0, 5e-4, 1e-3, 1e-3 * (0.5 * 0.99 + 0.01), 1e-5], 1e-9)


@pytest.mark.parametrize('name', ['adam', 'adamw', 'lion', 'sgd'])
def test_every_optimizer_goes_downhill(name: str) -> None:
    optimizer = make_optimizer(OptimConfig(name=name, learning_rate=0.01), 10)  # pyright: ignore
    params = {'w': jnp.array([1.0, -2.0])}
    state = optimizer.init(params)
    updates, _ = optimizer.update({'w': jnp.array([3.0, -4.0])}, state, params)
    new = optax.apply_updates(params, updates)
    assert (abs(new['w']) < abs(params['w'])).all()  # pyright: ignore


@pytest.mark.parametrize('name', ['adam', 'adamw', 'lion', 'sgd'])
def test_relative_updates_are_multiplied_by_the_rms_of_each_array(name: str) -> None:
    params = {'small': jnp.array([3e-4, -4e-4]), 'large': jnp.array([30.0, -40.0])}
    gradients = {'small': jnp.array([1.0, 2.0]), 'large': jnp.array([2.0, -1.0])}
    plain, relative = (
        make_optimizer(OptimConfig(name=name, relative=relative), 10)  # pyright: ignore
        for relative in (False, True)
    )
    updates, _ = plain.update(gradients, plain.init(params), params)
    scaled, _ = relative.update(gradients, relative.init(params), params)
    for key, rms in (('small', 12.5**0.5 * 1e-4), ('large', 12.5**0.5 * 10)):
        assert_close(scaled[key], updates[key] * rms, 1e-6 * rms)  # pyright: ignore


def test_relative_updates_move_a_parameter_of_zeros() -> None:
    optimizer = make_optimizer(OptimConfig(relative=True), 10)
    params = {'bias': jnp.zeros(3)}
    updates, _ = optimizer.update({'bias': jnp.ones(3)}, optimizer.init(params), params)
    assert (updates['bias'] < 0).all()  # pyright: ignore


@pytest.mark.parametrize(
    ('settings', 'warned'),
    [
        ({'name': 'adam', 'learning_rate': 5e-4}, True),
        ({'name': 'adam', 'learning_rate': 5e-5}, False),
        ({'name': 'muon', 'learning_rate': 4e-3}, True),
        ({'name': 'muon', 'learning_rate': 1e-3}, False),
        ({'name': 'adam', 'learning_rate': 5e-4, 'relative': True}, False),
        ({'name': 'sgd', 'learning_rate': 5e-4}, False),
    ],
)
def test_updates_that_are_too_large_for_a_kernel_cause_a_warning(
    settings: dict[str, Any], warned: bool
) -> None:
    params = fmen_jax.load('fmen_s_x4').variables['params']
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        warn_of_large_updates(OptimConfig(**settings), params)
    assert len(found) == warned
    if warned:
        assert str(found[0].message) == (
            'the first updates have a root mean square of about '
            f'{5e-4 if settings["name"] == "adam" else 8e-4:.2g}, and the kernel '
            'HFABs_3/excitate/kernel has one of 0.002: training will probably diverge, or '
            'undo what the weights have learned. Use --optim.relative, or a lower '
            '--optim.learning-rate.'
        )


def test_no_warning_when_training_starts_from_scratch() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for start in ('pytorch', 'bicubic'):
            variables = initial_variables(FMENConfig(scale=4), 'collapsed', start=start)
            warn_of_large_updates(OptimConfig(learning_rate=2e-3), variables['params'])


def test_kernels_of_zeros_cause_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        params = {'a': {'kernel': jnp.zeros((3, 3, 4, 4))}, 'b': {'bias': jnp.ones(4)}}
        warn_of_large_updates(OptimConfig(), params)


@pytest.mark.slow
def test_muon_orthogonalizes_inner_kernels_and_leaves_the_rest_to_adam() -> None:
    config = FMENConfig(scale=2, n_feats=10, mid_feats=8, down_blocks=1, up_blocks=(0, 0))
    params = initial_variables(config, 'collapsed')['params']
    generator = np.random.default_rng(0)
    gradients = jax.tree.map(lambda a: generator.normal(size=a.shape).astype(np.float32), params)
    rate = 1e-2
    muon = make_optimizer(OptimConfig('muon', learning_rate=rate, schedule='constant'), 10)
    adam = optax.adam(rate, nesterov=True)
    updates, _ = muon.update(gradients, muon.init(params), params)
    by_adam, _ = adam.update(gradients, adam.init(params), params)
    inner = 0
    for (path, update), other in zip(
        jax.tree.leaves_with_path(updates), jax.tree.leaves(by_adam), strict=True
    ):
        if update.ndim != 4 or path[0].key in ('head', 'tail_0'):
            assert_close(update, other, 1e-7)
            continue
        inner += 1
        matrix = np.asarray(update).reshape(-1, update.shape[3])
        scale = rate * 0.2 * max(matrix.shape) ** 0.5
        singular = np.linalg.svd(matrix / scale, compute_uv=False)
        # Newton-Schulz brings singular values near 1, not to it
        assert singular.min() > 0.5
        assert singular.max() < 1.3
    assert inner == 1 + 3 * 2 + 2 * 2 + 1  # warm-up, RRRBs, squeeze and excitate, lr_conv
