"""oneDNN's convolutions against XLA's: the same numbers, in the programs that ask for them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
import pytest

from fmen_jax import onednn
from fmen_jax.compiler import jit
from fmen_jax.inference.engines import Xla
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.initial import initial_variables
from fmen_jax.models.layers import conv
from fmen_jax.pretrained import Network
from fmen_jax.training.optim import OptimConfig, make_optimizer
from fmen_jax.training.state import init_state
from fmen_jax.training.step import StepConfig, make_train_step

CALL = '__onednn$convolution'
SMALL = FMENConfig(scale=2, n_feats=10, mid_feats=8, down_blocks=1, up_blocks=(1, 1))


@pytest.fixture(autouse=True)
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small convolutions too; and the installed version is one that may be used."""
    version = jaxlib.version.__version__
    monkeypatch.setattr(onednn, 'LEAST_PRODUCTS', 0)
    assert version in onednn.TESTED, (
        f'jaxlib {version} is not in fmen_jax.onednn.TESTED: add it, run these tests, '
        'and if they fail or the process ends look at what XLA changed in onednn_config.proto.'
    )
    if not onednn.usable():
        pytest.skip('not Linux on x86-64 with one CPU device')


def arrays(*shapes: tuple[int, ...]) -> list[jax.Array]:
    generator = np.random.default_rng(0)
    return [jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize(
    ('image', 'kernel'),
    [
        ((1, 7, 9, 3), (3, 3, 3, 50)),
        ((2, 16, 12, 50), (3, 3, 50, 50)),
        ((3, 5, 6, 50), (3, 3, 50, 16)),
        ((1, 8, 8, 12), (1, 1, 12, 5)),
        ((1, 8, 11, 4), (5, 5, 4, 7)),
        ((1, 1, 1, 4), (3, 3, 4, 4)),
    ],
)
def test_value_and_gradients(image: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    x, k, b, weight = arrays(image, kernel, kernel[3:], (*image[:3], kernel[3]))

    def loss(x: jax.Array, k: jax.Array, b: jax.Array) -> Any:
        y = conv(x, {'kernel': k, 'bias': b})
        return jnp.sum(y * weight), y

    run: Any = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
    fast = jit(run, libraries=True)
    assert fast.lower(x, k, b).as_text().count(CALL) == 2
    expected = jax.tree.leaves(jax.jit(run)(x, k, b))
    for found, right in zip(jax.tree.leaves(fast(x, k, b)), expected, strict=True):
        np.testing.assert_allclose(found, right, atol=2e-6 * float(jnp.abs(right).max()))


def test_what_it_does_not_take_is_xla() -> None:
    """Strides, VALID, other dtypes, even kernels, programs that did not ask."""
    x, odd, even, b = arrays((1, 8, 8, 4), (3, 3, 4, 4), (2, 2, 4, 4), (4,))
    params = {'kernel': odd, 'bias': b}
    functions: dict[str, Callable] = {
        'stride': lambda x: conv(x, params, stride=2),
        'valid': lambda x: conv(x, params, padding='VALID'),
        'bfloat16': lambda x: conv(x.astype(jnp.bfloat16), params),
        'even': lambda x: conv(x, {'kernel': even, 'bias': b}),
    }
    for name, function in functions.items():
        assert CALL not in jit(function, libraries=True).lower(x).as_text(), name
    function = with_params(params)
    assert CALL in jit(function, libraries=True).lower(x).as_text()
    assert CALL not in jit(function).lower(x).as_text()


def with_params(params: Any) -> Callable:
    return lambda x: conv(x, params)


def test_other_versions_and_several_devices_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    x, kernel, b = arrays((1, 8, 8, 4), (3, 3, 4, 4), (4,))
    function = with_params({'kernel': kernel, 'bias': b})
    with monkeypatch.context() as patch:
        patch.setattr(jaxlib.version, '__version__', '0.99.0')
        assert CALL not in jit(function, libraries=True).lower(x).as_text()
    with monkeypatch.context() as patch:
        patch.setattr(jax, 'device_count', lambda: 2)
        assert CALL not in jit(function, libraries=True).lower(x).as_text()


def test_the_engine_gives_the_same_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Network(SMALL, 'deploy', initial_variables(SMALL, 'deploy'))
    x = np.random.default_rng(0).uniform(0, 255, (2, 20, 17, 3)).astype(np.float32)
    found = Xla(net, 'float32')(x)
    monkeypatch.setattr(onednn, 'TESTED', ())
    np.testing.assert_allclose(found, Xla(net, 'float32')(x), atol=1e-3)


@pytest.mark.parametrize('settings', [{}, {'remat': 'none', 'accumulate': 2, 'packed': 2}])
def test_a_train_step_is_the_same(settings: dict[str, Any]) -> None:
    config = StepConfig(**settings)
    optimizer = make_optimizer(OptimConfig(learning_rate=1e-3, schedule='constant'), 10)
    module = SMALL.build('collapsed', packed=config.packed or 1)
    step = make_train_step(module, optimizer, config)
    lr = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 3), np.uint8)
    batch = {'lr': lr, 'hr': lr.repeat(2, 1).repeat(2, 2)}
    state = init_state(initial_variables(SMALL, 'collapsed'), optimizer, ema=False)
    fast = jit(step, libraries=True)
    assert CALL in fast.lower(state, batch).as_text()
    (found, metrics), (expected, right) = fast(state, batch), jax.jit(step)(state, batch)
    np.testing.assert_allclose(metrics.loss, right.loss, rtol=1e-6)
    np.testing.assert_allclose(metrics.gradient_norm, right.gradient_norm, rtol=1e-5)
    for a, b in zip(
        jax.tree.leaves(found.batch_stats), jax.tree.leaves(expected.batch_stats), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_what_is_computed_again_is_not_kept() -> None:
    optimizer = make_optimizer(OptimConfig(), 10)
    state = init_state(initial_variables(SMALL, 'collapsed'), optimizer, ema=False)
    lr = np.zeros((4, 64, 64, 3), np.uint8)
    batch = {'lr': lr, 'hr': lr.repeat(2, 1).repeat(2, 2)}
    temp = {}
    for remat in ('none', 'cheap'):
        step = make_train_step(SMALL.build('collapsed'), optimizer, StepConfig(remat=remat))
        compiled = jit(step, libraries=True).lower(state, batch).compile()
        temp[remat] = compiled.memory_analysis().temp_size_in_bytes
    assert temp['cheap'] < 0.9 * temp['none'], temp
