"""The real training step, against the published code's trajectory and against itself."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fmen_jax
from fmen_jax import porting
from fmen_jax.images.bicubic import imresize
from fmen_jax.images.pixel_shuffle import pixel_unshuffle
from fmen_jax.models.layers import Graph
from fmen_jax.models.reparam import fold
from fmen_jax.parity import Dump
from fmen_jax.parity.report import Stage
from fmen_jax.parity.stages import CompareConfig, compare_steps
from fmen_jax.training.optimizer import OptimConfig, make_optimizer
from fmen_jax.training.state import TrainState, init_state
from fmen_jax.training.step import StepConfig, loss_of, make_train_step
from tests.helpers import Golden, assert_close, corrupted, golden_dump, train_variables

# The golden files: Adam, 1e-3, no schedule.
ADAM = OptimConfig(learning_rate=1e-3, schedule='constant')


@functools.cache
def _compiled(
    module: nn.Module, optim: OptimConfig, step: StepConfig
) -> tuple[optax.GradientTransformation, Any]:
    optimizer = make_optimizer(optim, steps=10)
    return optimizer, jax.jit(make_train_step(module, optimizer, step), donate_argnums=0)


def train(
    tiny: Golden,
    variables: Any,
    graph: Graph,
    step: StepConfig,
    optim: OptimConfig = ADAM,
    **form: Any,
) -> tuple[TrainState, list[float]]:
    """All steps of a golden file."""
    config, _ = train_variables(tiny)
    module = config.build(graph, **form)
    optimizer, run = _compiled(module, optim, step)
    state = init_state(variables, optimizer, ema=step.ema_decay > 0)
    losses = []
    for x, y in zip(tiny.image('steps/x'), tiny.image('steps/y'), strict=True):
        hr = y if module.shuffle == 'image' else pixel_unshuffle(y, config.scale)
        state, metrics = run(state, {'lr': jnp.asarray(x), 'hr': jnp.asarray(hr)})
        losses.append(float(metrics.loss))
    assert state.step == len(losses)
    return state, losses


# tests/models/test_fmen.py compares the steps of tiny_x3 in every run
networks = pytest.mark.parametrize(
    'tiny', ['tiny_x2', pytest.param('tiny_x3', marks=pytest.mark.exhaustive)], indirect=True
)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.usefixtures('x64')
@networks
@pytest.mark.parametrize(
    ('graph', 'form'),
    [
        ('expanded', {}),
        ('collapsed', {}),
        ('collapsed', {'packed': 2, 'shuffle': 'none'}),  # as on TPUs
    ],
)
def test_golden_trajectory(tiny: Golden, graph: Graph, form: dict[str, Any]) -> None:
    config, variables = train_variables(tiny)
    bounds = CompareConfig(bound=1e-12, step_bound=1e-9)

    def run(variables: Any) -> Stage:
        state, losses = train(tiny, variables, graph, StepConfig(dtype='float64'), **form)
        final = porting.to_state_dict(jax.device_get(state.variables), config, graph)
        return compare_steps(Dump(golden_dump(tiny)), {'float64': (losses, final)}, bounds)

    stage = run(variables)
    assert stage.equal, stage.worst
    # see tests/models/test_fmen.py: Adam amplifies noise in some, and nothing depends on them
    kept = [row for row in stage.rows if row.note != 'noise only']
    assert len(kept) > len(tiny.below('steps/final/')) / 2
    assert max(row.max_abs for row in kept) <= 1e-8
    stage = run(corrupted(variables))
    assert not stage.rows[0].equal  # the first loss
    assert not all(row.equal for row in stage.rows[len(tiny.arrays['steps/loss']) :])


@pytest.mark.slow
@pytest.mark.parity
@networks
@pytest.mark.parametrize('graph', ['expanded', 'collapsed'])
def test_golden_losses_in_float32(tiny: Golden, graph: Graph) -> None:
    _, variables = train_variables(tiny)
    variables = jax.tree.map(lambda a: a.astype(jnp.float32) if a.ndim else a, variables)
    _, losses = train(tiny, variables, graph, StepConfig())
    stage = compare_steps(Dump(golden_dump(tiny)), {'float32': (losses, {})})
    assert stage.equal, stage.worst


@pytest.mark.slow
def test_bfloat16_keeps_parameters_and_statistics_in_float32(tiny_x2: Golden) -> None:
    _, variables = train_variables(tiny_x2)
    variables = jax.tree.map(lambda a: a.astype(jnp.float32) if a.ndim else a, variables)
    state, losses = train(tiny_x2, variables, 'collapsed', StepConfig(dtype='bfloat16'))
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((state.params, state.batch_stats))}
    assert dtypes == {jnp.dtype('float32'), jnp.dtype('int32')}
    expected = tiny_x2.arrays['steps/loss']
    assert_close(losses, list(expected), 0.02 * expected.max())


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
def test_rematerialization_changes_nothing(tiny_x2: Golden) -> None:
    _, variables = train_variables(tiny_x2)
    plain = train(tiny_x2, variables, 'collapsed', StepConfig(dtype='float64', remat='none'))
    for remat in ('cheap', 'full'):
        again = train(tiny_x2, variables, 'collapsed', StepConfig(dtype='float64', remat=remat))
        assert_close(again[1], plain[1], 1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
def test_accumulation_of_a_graph_without_batch_norm_is_the_whole_batch(tiny_x2: Golden) -> None:
    _, variables = train_variables(tiny_x2)
    folded = fold(variables)
    whole = train(tiny_x2, folded, 'deploy', StepConfig(dtype='float64'))
    parts = train(tiny_x2, folded, 'deploy', StepConfig(dtype='float64', accumulate=2))
    assert len(tiny_x2.image('steps/x')[0]) == 2
    assert_close(parts[1], whole[1], 1e-10)
    assert_close(parts[0].params, whole[0].params, 1e-9)
    assert whole[0].batch_stats == {}


@pytest.mark.usefixtures('x64')
def test_moving_average(tiny_x2: Golden) -> None:
    _, variables = train_variables(tiny_x2)
    state, _ = train(tiny_x2, variables, 'collapsed', StepConfig(ema_decay=0.9, dtype='float64'))
    plain, _ = train(tiny_x2, variables, 'collapsed', StepConfig(dtype='float64'))
    assert_close(state.params, plain.params, 0)
    assert plain.ema == {}
    assert plain.smoothed['params'] is plain.params
    kernel = state.ema['head']['kernel']
    start, end = variables['params']['head']['kernel'], state.params['head']['kernel']
    share = abs(kernel - start).sum() / abs(end - start).sum()
    steps = int(state.step)
    # after n steps 1 - 0.9^n of the way at the most, and not nothing
    assert 0.05 < share < 1 - 0.9**steps + 0.05


def test_losses() -> None:
    error = jnp.array([3.0, -4.0]).reshape(1, 1, 2, 1)
    assert loss_of(error, 'l1') == 3.5
    assert loss_of(error, 'l2') == 12.5
    assert_close(loss_of(error, 'charbonnier'), 3.5, 1e-5)
    assert_close(loss_of(0 * error, 'charbonnier'), 1e-3, 1e-9)
    assert loss_of(error.astype(jnp.bfloat16), 'l1').dtype == jnp.float32


@pytest.mark.slow
def test_gradients_are_clipped(tiny_x2: Golden) -> None:
    _, variables = train_variables(tiny_x2)
    sgd = OptimConfig(name='sgd', b1=0.0, learning_rate=1.0, schedule='constant', clip_norm=0.5)
    config, _ = train_variables(tiny_x2)
    optimizer = make_optimizer(sgd, steps=10)
    step = jax.jit(make_train_step(config.build('collapsed'), optimizer, StepConfig()))
    state = init_state(variables, optimizer, ema=False)
    batch = {'lr': tiny_x2.image('steps/x')[0], 'hr': tiny_x2.image('steps/y')[0]}
    batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), batch)
    new, metrics = step(state, batch)
    assert metrics.gradient_norm > 0.5
    moved = jax.tree.map(jnp.subtract, state.params, new.params)
    assert_close(optax.tree.norm(moved), 0.5, 1e-4)


def test_what_the_backend_decides() -> None:
    assert StepConfig().on('cpu') == StepConfig(dtype='float32', packed=1, remat='cheap')
    on_tpu = StepConfig(dtype='bfloat16', packed=2, remat='none')
    assert StepConfig().on('tpu', patch=48) == on_tpu
    assert StepConfig().on('tpu', patch=47).packed == 1
    assert StepConfig().on('tpu', 'expanded').packed == 1
    said = StepConfig(dtype='float64', packed=4, remat='full')
    assert said.on('tpu', patch=8) == said


@pytest.mark.slow
def test_relative_updates_fine_tune_the_published_weights(shared: Callable[[str], Path]) -> None:
    """Plain updates of any usual size do not: a kernel of `excitate` has an rms of about 1e-5."""
    network = fmen_jax.load(shared('official/fmen_s_x4_github.pt'))
    module = network.config.build('deploy', shuffle='none')
    # a smooth image is easy: the loss is about 1
    y, x = np.mgrid[:96, :96] / 10
    waves = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1)
    hr = np.round(waves * 100 + 128).astype(np.uint8)
    batch = {
        'lr': jnp.asarray(imresize(hr, 1 / 4)[None]),
        'hr': jnp.asarray(pixel_unshuffle(hr[None], 4)),
    }

    def losses(*, relative: bool) -> list[float]:
        optim = OptimConfig(learning_rate=5e-4, schedule='constant', relative=relative)
        optimizer, run = _compiled(module, optim, StepConfig())
        state = init_state({'batch_stats': {}, **network.variables}, optimizer, ema=False)
        found = []
        for _ in range(8):
            state, metrics = run(state, batch)
            found.append(float(metrics.loss))
        return found

    first, *later = losses(relative=True)
    assert max(later) < 1.2 * first
    assert min(later) < first
    assert max(losses(relative=False)) > 100 * first
