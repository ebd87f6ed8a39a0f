"""oneDNN's convolutions against XLA's: the same numbers, in the programs that ask for them."""

import functools
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
import pytest

from fmen_jax.inference.engines import Xla
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.initial import initial_variables
from fmen_jax.models.layers import conv
from fmen_jax.network import Network
from fmen_jax.runtime import cpu, onednn, onednn_calls, onednn_self_test
from fmen_jax.runtime.compilation import jit
from fmen_jax.training.optimizer import OptimConfig, make_optimizer
from fmen_jax.training.state import init_state
from fmen_jax.training.step import StepConfig, make_train_step

CALL = '__onednn$convolution'
SMALL = FMENConfig(scale=2, n_feats=10, mid_feats=8, down_blocks=1, up_blocks=(1, 1))


@pytest.fixture
def platform_with_onednn() -> None:
    if sys.platform != 'linux' or platform.machine() != 'x86_64' or jax.device_count() > 1:
        pytest.skip('oneDNN is used on Linux on x86-64 with one CPU device only')


@pytest.fixture
def supported(monkeypatch: pytest.MonkeyPatch, platform_with_onednn: None) -> frozenset[str]:
    """The dtypes that oneDNN supports here; small convolutions go to it too."""
    monkeypatch.setattr(onednn, 'LEAST_PRODUCTS', 0)
    dtypes = onednn.supported_dtypes()
    assert 'float32' in dtypes, (
        f'jaxlib {jaxlib.version.__version__} fails the self-test: run python -m '
        'fmen_jax.runtime.onednn_self_test, and compare the calls with its onednn_config.proto'
    )
    return dtypes


def arrays(*shapes: tuple[int, ...]) -> list[jax.Array]:
    generator = np.random.default_rng(0)
    return [jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in shapes]


def value_and_gradients(weight: jax.Array) -> Any:
    """Of sum(weight * conv): the output, and the gradients of x, kernel and bias."""

    def loss(x: jax.Array, k: jax.Array, b: jax.Array) -> Any:
        y = conv(x, {'kernel': k, 'bias': b})
        return jnp.sum(y * weight.astype(y.dtype)), y

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)


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
def test_value_and_gradients(
    image: tuple[int, ...], kernel: tuple[int, ...], supported: frozenset[str]
) -> None:
    x, k, b, weight = arrays(image, kernel, kernel[3:], (*image[:3], kernel[3]))
    run = value_and_gradients(weight)
    fast = jit(run, onednn='large')
    assert fast.lower(x, k, b).as_text().count(CALL) == 2
    expected = jax.tree.leaves(jax.jit(run)(x, k, b))
    # without the loss, a sum that cancels
    for found, right in zip(jax.tree.leaves(fast(x, k, b))[1:], expected[1:], strict=True):
        np.testing.assert_allclose(found, right, atol=2e-6 * float(jnp.abs(right).max()))


@pytest.mark.parametrize('size', [1, 3, 5])
def test_bfloat16_against_float64(size: int, supported: frozenset[str]) -> None:
    if 'bfloat16' not in supported:
        pytest.skip(f'oneDNN has no bfloat16 on this CPU: {cpu.model()}, {cpu.features()}')
    shapes = ((2, 16, 12, 50), (size, size, 50, 16), (16,), (2, 16, 12, 16))
    # numbers that bfloat16 has, so that only sums and results are rounded
    x, k, b, weight = (a.astype(jnp.bfloat16) for a in arrays(*shapes))
    parameters = [a.astype(jnp.float32) for a in (k, b)]
    fast = jit(value_and_gradients(weight), onednn='large')
    assert '__onednn$matmul' in fast.lower(x, *parameters).as_text()
    found = jax.tree.leaves(fast(x, *parameters))
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(a, np.float64)) for a in (x, k, b, weight)]
        expected = jax.tree.leaves(jax.jit(value_and_gradients(exact[3]))(*exact[:3]))
    expected = [np.asarray(a) for a in expected]
    for a, right in zip(found[1:], expected[1:], strict=True):  # the loss is summed in bfloat16
        bound = 2**-7 * np.abs(right).max()  # two units of bfloat16
        np.testing.assert_allclose(np.asarray(a, np.float64), right, rtol=0, atol=bound)


@pytest.mark.parametrize('size', [1, 3, 5])
@pytest.mark.parametrize('image', [(1, 1, 1, 4), (2, 7, 9, 4), (1, 2, 1, 4)])
def test_the_kernel_gradient_as_a_matrix_product(
    image: tuple[int, ...], size: int, x64: None
) -> None:
    generator = np.random.default_rng(0)
    x, gradient = (jnp.asarray(generator.normal(size=(*image[:3], c))) for c in (4, 6))
    zeros = {'kernel': jnp.zeros((size, size, 4, 6)), 'bias': jnp.zeros(6)}
    (expected,) = jax.vjp(functools.partial(conv, x), zeros)[1](gradient)
    found = onednn_calls.kernel_gradient(x, gradient, size, matmul=lambda a, b: a.T @ b)
    np.testing.assert_allclose(found, expected['kernel'], rtol=0, atol=1e-12)


def test_oneDNNs_matrix_product(supported: frozenset[str]) -> None:  # noqa: N802
    a, b = arrays((37, 12), (37, 20))
    program = jax.jit(onednn_calls.matmul)
    assert '__onednn$matmul' in program.lower(a, b).as_text()
    np.testing.assert_allclose(program(a, b), a.T @ b, atol=1e-5)


def test_one_infinity_reaches_one_feature_of_the_kernel(supported: frozenset[str]) -> None:
    x, k, b, gradient = arrays((1, 12, 12, 4), (3, 3, 4, 4), (4,), (1, 12, 12, 4))

    def backward(gradient: jax.Array) -> Any:
        function = lambda x, k: conv(x, {'kernel': k, 'bias': b})  # noqa: E731
        return jax.vjp(function, x, k)[1](gradient)

    program = jit(backward, onednn='large')
    assert CALL in program.lower(gradient).as_text()
    to_x, to_kernel = program(gradient.at[0, 0, 0, 0].set(jnp.inf))
    assert np.isfinite(to_x[0, 2:, 2:]).all()
    assert not np.isfinite(to_x[0, 0, 0]).any()
    assert np.isfinite(to_kernel[..., 1:]).all()
    assert not np.isfinite(to_kernel[1, 1, :, 0]).any()


def test_what_it_does_not_take_is_xla(supported: frozenset[str]) -> None:
    """Strides, VALID, other dtypes, even kernels, programs that did not ask."""
    x, odd, even, b = arrays((1, 8, 8, 4), (3, 3, 4, 4), (2, 2, 4, 4), (4,))
    params = {'kernel': odd, 'bias': b}
    functions: dict[str, Callable] = {
        'stride': lambda x: conv(x, params, stride=2),
        'valid': lambda x: conv(x, params, padding='VALID'),
        'float16': lambda x: conv(x.astype(jnp.float16), params),
        'even': lambda x: conv(x, {'kernel': even, 'bias': b}),
    }
    for name, function in functions.items():
        assert CALL not in jit(function, onednn='large').lower(x).as_text(), name
    function = with_params(params)
    assert CALL in jit(function, onednn='large').lower(x).as_text()
    assert CALL not in jit(function).lower(x).as_text()


def with_params(params: Any) -> Callable:
    return lambda x: conv(x, params)


def test_several_devices_do_without(
    monkeypatch: pytest.MonkeyPatch, supported: frozenset[str]
) -> None:
    x, kernel, b = arrays((1, 8, 8, 4), (3, 3, 4, 4), (4,))
    function = with_params({'kernel': kernel, 'bias': b})
    monkeypatch.setattr(jax, 'device_count', lambda: 2)
    assert CALL not in jit(function, onednn='large').lower(x).as_text()


@pytest.fixture
def child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform_with_onednn: None
) -> Callable[[str], None]:
    """Let the self-test's child process run another Python program, in a new cache folder."""
    monkeypatch.setenv('FMEN_JAX_CACHE', str(tmp_path / 'new'))

    def replace(program: str) -> None:
        monkeypatch.setattr(onednn_self_test, 'SELF_TEST', (sys.executable, '-c', program))

    return replace


def verdicts(folder: Path) -> list[Any]:
    return [json.loads(path.read_text()) for path in folder.rglob('*.json')]


def test_the_self_test_runs_once_and_its_verdict_is_kept(
    child: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / 'ran'
    child(f'open({str(mark)!r}, "a").write("x"); print("passed float32")')
    assert onednn.supported_dtypes() == {'float32'}
    onednn_self_test.verdict.cache_clear()  # as in a new process
    assert onednn.supported_dtypes() == {'float32'}
    assert mark.read_text() == 'x'
    assert verdicts(tmp_path / 'new') == [{'passed': ['float32'], 'outcome': 'exit status 0'}]
    monkeypatch.setattr(jaxlib.version, '__version__', '0.99.0')
    assert onednn.supported_dtypes() == {'float32'}
    assert mark.read_text() == 'xx'  # another jaxlib is tried anew


@pytest.mark.parametrize(
    ('program', 'passed'),
    [
        ('import os; os.abort()', set()),
        ('print("passed float32", flush=True); import os; os.abort()', {'float32'}),
        ('import os, signal; os.kill(os.getpid(), signal.SIGILL)', set()),
        ('print("passed float64")', set()),
    ],
)
def test_a_child_that_dies(
    program: str, passed: set[str], child: Callable[[str], None], tmp_path: Path
) -> None:
    child(program)
    assert onednn.supported_dtypes() == passed
    (stored,) = verdicts(tmp_path / 'new')
    assert set(stored['passed']) == passed


def test_without_a_verdict_convolutions_are_xlas(
    child: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    child('import os; os.abort()')
    monkeypatch.setattr(onednn, 'LEAST_PRODUCTS', 0)
    x, kernel, b = arrays((1, 8, 8, 4), (3, 3, 4, 4), (4,))
    program = jit(with_params({'kernel': kernel, 'bias': b}), onednn='large')
    assert CALL not in program.lower(x).as_text()


@pytest.mark.parametrize('wrong', ['y.at[0, 0, 0, 0].add(0.1)', 'y * float("nan")'])
def test_a_child_with_wrong_values(
    wrong: str, child: Callable[[str], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    child(
        'from fmen_jax.runtime import onednn_calls, onednn_self_test\n'
        'right = onednn_calls.conv\n'
        'def conv(*args):\n'
        '    y = right(*args)\n'
        f'    return {wrong}\n'
        'onednn_calls.conv = conv\n'
        'onednn_self_test.self_test()'
    )
    with caplog.at_level('DEBUG', 'fmen_jax'):
        assert onednn.supported_dtypes() == set()
    assert 'oneDNN self-test: nothing passed; exit status 3 float32: differs' in caplog.text
    assert verdicts(tmp_path / 'new')[0]['passed'] == []


def test_a_child_whose_call_is_refused(child: Callable[[str], None], tmp_path: Path) -> None:
    """As by a jaxlib that has no such call."""
    child(
        'import jax\n'
        'from fmen_jax.runtime import onednn_calls, onednn_self_test\n'
        'def conv(x, kernel, bias):\n'
        '    return jax.ffi.ffi_call("unknown", jax.ShapeDtypeStruct((2, 9, 7, 12), x.dtype))(x)\n'
        'onednn_calls.conv = jax.custom_vjp(conv)\n'
        'zeros = lambda saved, y: saved\n'
        'onednn_calls.conv.defvjp(lambda *args: (conv(*args), args), zeros)\n'
        'onednn_self_test.self_test()'
    )
    assert onednn.supported_dtypes() == set()
    (stored,) = verdicts(tmp_path / 'new')
    assert 'exit status 3 float32: ' in stored['outcome']
    assert 'unknown' in stored['outcome']


@pytest.mark.parametrize(
    'program',
    [
        'import os, signal; os.kill(os.getpid(), signal.SIGKILL)',
        'import os, signal; os.kill(os.getpid(), signal.SIGTERM)',
        'import a_module_that_is_missing',
        'raise MemoryError',
        'import jax\n'
        'from fmen_jax.runtime import onednn_calls, onednn_self_test\n'
        'def conv(*args):\n'
        '    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")\n'
        'onednn_calls.conv = conv\n'
        'onednn_self_test.self_test()',
    ],
)
def test_a_child_that_comes_to_no_verdict(
    program: str, child: Callable[[str], None], tmp_path: Path
) -> None:
    child(program)
    assert onednn.supported_dtypes() == set()
    assert verdicts(tmp_path / 'new') == []


def test_a_child_that_cannot_be_started(
    child: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    child('')
    monkeypatch.setattr(onednn_self_test, 'SELF_TEST', (str(tmp_path / 'missing'),))
    with caplog.at_level('DEBUG', 'fmen_jax'):
        assert onednn.supported_dtypes() == set()
    assert 'not started' in caplog.text
    assert verdicts(tmp_path / 'new') == []


def test_a_child_that_hangs_leaves_no_verdict(
    child: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child('import time; print("passed float32", flush=True); time.sleep(60)')
    monkeypatch.setattr(onednn_self_test, 'SELF_TEST_SECONDS', 0.5)
    assert onednn.supported_dtypes() == set()
    assert verdicts(tmp_path / 'new') == []


def test_a_cache_that_cannot_be_written(
    child: Callable[[str], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / 'new').write_text('a file where the folder should be')
    child('print("passed float32")')
    with caplog.at_level('DEBUG', 'fmen_jax'):
        assert onednn.supported_dtypes() == {'float32'}
    assert 'the verdict could not be stored' in caplog.text


def test_a_damaged_verdict_is_replaced(child: Callable[[str], None], tmp_path: Path) -> None:
    child('print("passed float32")')
    onednn.supported_dtypes()
    (path,) = (tmp_path / 'new').rglob('*.json')
    path.write_text('{"passed": 1')
    onednn_self_test.verdict.cache_clear()
    assert onednn.supported_dtypes() == {'float32'}
    assert verdicts(tmp_path / 'new')[0]['passed'] == ['float32']


def test_the_engine_gives_the_same_picture(supported: frozenset[str]) -> None:
    net = Network(SMALL, 'deploy', initial_variables(SMALL, 'deploy'))
    x = np.random.default_rng(0).uniform(0, 255, (2, 20, 17, 3)).astype(np.float32)
    found = Xla(net, 'float32')(x)
    np.testing.assert_allclose(found, net(x), atol=1e-3)  # by XLA's own


@pytest.mark.slow
@pytest.mark.parametrize('settings', [{}, {'remat': 'none', 'accumulate': 2, 'packed': 2}])
def test_a_train_step_is_the_same(settings: dict[str, Any], supported: frozenset[str]) -> None:
    config = StepConfig(**settings)
    optimizer = make_optimizer(OptimConfig(learning_rate=1e-3, schedule='constant'), 10)
    module = SMALL.build('collapsed', packed=config.packed or 1)
    step = make_train_step(module, optimizer, config)
    lr = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 3), np.uint8)
    batch = {'lr': lr, 'hr': lr.repeat(2, 1).repeat(2, 2)}
    state = init_state(initial_variables(SMALL, 'collapsed'), optimizer, ema=False)
    fast = jit(step, onednn='large')
    assert CALL in fast.lower(state, batch).as_text()
    (found, metrics), (expected, right) = fast(state, batch), jax.jit(step)(state, batch)
    np.testing.assert_allclose(metrics.loss, right.loss, rtol=1e-6)
    np.testing.assert_allclose(metrics.gradient_norm, right.gradient_norm, rtol=1e-5)
    for a, b in zip(
        jax.tree.leaves(found.batch_stats), jax.tree.leaves(expected.batch_stats), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_what_is_computed_again_is_not_kept(supported: frozenset[str]) -> None:
    optimizer = make_optimizer(OptimConfig(), 10)
    state = init_state(initial_variables(SMALL, 'collapsed'), optimizer, ema=False)
    lr = np.zeros((4, 64, 64, 3), np.uint8)
    batch = {'lr': lr, 'hr': lr.repeat(2, 1).repeat(2, 2)}
    temp = {}
    for remat in ('none', 'cheap'):
        step = make_train_step(SMALL.build('collapsed'), optimizer, StepConfig(remat=remat))
        compiled = jit(step, onednn='large').lower(state, batch).compile()
        temp[remat] = compiled.memory_analysis().temp_size_in_bytes
    assert temp['cheap'] < 0.9 * temp['none'], temp
