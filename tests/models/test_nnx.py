"""Networks as NNX modules: the same values, statistics and steps as in Linen, and back."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.initial import initial_variables
from fmen_jax.network import Network
from tests.helpers import assert_close, differs

X = np.random.default_rng(0).uniform(0, 255, (2, 9, 8, 3)).astype(np.float32)
TARGET = np.random.default_rng(1).uniform(0, 255, (2, 18, 16, 3)).astype(np.float32)


@pytest.fixture
def net() -> Network:
    """The smallest FMEN with batch norms and RRRBs."""
    config = FMENConfig(scale=2, n_feats=4, mid_feats=8, down_blocks=0, up_blocks=(1,))
    return Network(config, 'collapsed', initial_variables(config, 'collapsed', seed=3))


def test_forward_in_eval_mode_is_linens_and_changes_nothing(net: Network) -> None:
    model = net.to_nnx()
    expected = net.module.apply(net.variables, X)
    assert_close(model(X), expected, 0)
    assert_close(nnx.jit(model.__class__.__call__)(model, X), expected, 1e-5 * np.ptp(expected))
    assert_close(model.variables(), net.variables, 0)
    folded = net.fold()
    assert_close(folded.to_nnx()(X), folded.module.apply(folded.variables, X), 0)


def test_forward_in_train_mode_updates_the_statistics_as_linen_does(net: Network) -> None:
    model = net.to_nnx()
    model.train()
    y, updated = net.module.apply(net.variables, X, train=True, mutable=['batch_stats'])
    assert_close(model(X), y, 0)
    assert_close(model.variables()['batch_stats'], updated['batch_stats'], 0)
    assert_close(model.variables()['params'], net.variables['params'], 0)
    assert differs(model.variables()['batch_stats'], net.variables['batch_stats'], 1e-6)
    model.eval()
    now = {'params': net.variables['params'], **updated}
    assert_close(model(X), net.module.apply(now, X), 0)


@pytest.mark.slow
def test_steps_are_those_of_linen(net: Network, x64: None) -> None:
    wide = jax.tree.map(
        lambda a: jnp.asarray(a, None if a.dtype.kind == 'i' else float), net.variables
    )
    net = Network(net.config, net.graph, wide)
    x, target = X.astype(float), TARGET.astype(float)
    rule = optax.sgd(1e-7, momentum=0.9)

    model = net.to_nnx()
    model.train()
    optimizer = nnx.Optimizer(model, rule, wrt=nnx.Param)

    @nnx.jit
    def nnx_step(model: Any, optimizer: Any) -> Any:
        loss, gradient = nnx.value_and_grad(lambda m: jnp.square(m(x) - target).mean())(model)
        optimizer.update(model, gradient)
        return loss

    @jax.jit
    def linen_step(variables: Any, state: Any) -> Any:
        def loss(params: Any) -> Any:
            y, new = net.module.apply(
                {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
            )
            return jnp.square(y - target).mean(), new

        (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(variables['params'])
        updates, state = rule.update(gradient, state)
        return {'params': optax.apply_updates(variables['params'], updates), **new}, state, value

    variables, state = wide, rule.init(wide['params'])
    for _ in range(3):
        found = nnx_step(model, optimizer)
        variables, state, expected = linen_step(variables, state)
        assert float(found) == pytest.approx(float(expected), rel=1e-9)
    assert_close(model.variables(), variables, 1e-9)  # float64, compiled apart
    assert differs(model.variables()['params'], wide['params'], 1e-5)
    back = Network.from_nnx(model)
    assert (back.config, back.graph) == (net.config, net.graph)
    assert_close(back(x), net.module.apply(variables, x), 1e-7)


def test_there_and_back_is_the_same_file(net: Network, tmp_path: Path) -> None:
    net.save(tmp_path / 'before.safetensors', key_style='github')
    Network.from_nnx(net.to_nnx()).save(tmp_path / 'after.safetensors')
    before, after = ((tmp_path / f'{n}.safetensors').read_bytes() for n in ('before', 'after'))
    assert before == after


def test_networks_without_batch_norms_can_be_trained(net: Network) -> None:
    folded = net.fold()
    model = folded.to_nnx()
    model.train()
    assert_close(model(X), folded.module.apply(folded.variables, X), 0)
    assert list(model.variables()) == ['params']
