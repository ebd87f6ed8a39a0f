"""The layers against PyTorch's own."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmen_jax.errors import InputError
from fmen_jax.images.pixel_shuffle import pixel_shuffle
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.layers import (
    BatchNorm,
    Conv,
    conv,
    leaky_relu,
    pad_border,
)
from fmen_jax.models.tpu_layout import pack
from tests.helpers import assert_close

pytestmark = pytest.mark.usefixtures('x64')


def to_torch(x: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


def to_numpy(x: Any) -> np.ndarray:
    return np.moveaxis(x.detach().numpy(), 1, -1)


@pytest.mark.parity
def test_batch_norm_is_pytorchs_over_many_steps(torch: Any) -> None:
    generator = np.random.default_rng(0)
    theirs = torch.nn.BatchNorm2d(5, dtype=torch.float64)
    module = BatchNorm(5)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 1, 1, 5)), train=False)
    for _ in range(4):
        x = generator.normal(7, 3, (2, 3, 4, 5))
        (y, border), update = module.apply(variables, x, train=True, mutable=['batch_stats'])
        variables = {**variables, **update}
        assert_close(y, to_numpy(theirs(to_torch(x))), 1e-12)
        theirs.eval()  # the border value comes from the statistics after the update
        zero = theirs(torch.zeros(1, 5, 1, 1, dtype=torch.float64)).detach().numpy()
        theirs.train()
        assert_close(border, zero[0, :, 0, 0], 1e-12)
        # the border's value moves with gain and shift, not with the statistics of the batch
        slope = jax.grad(
            lambda x, v=variables: module.apply(v, x, train=True, mutable='batch_stats')[0][1].sum()
        )
        assert_close(slope(jnp.asarray(x)), np.zeros_like(x), 0)
    stats = variables['batch_stats']
    assert_close(stats['mean'], theirs.running_mean.numpy(), 1e-12)
    assert_close(stats['var'], theirs.running_var.numpy(), 1e-12)
    assert int(stats['num_batches_tracked']) == int(theirs.num_batches_tracked) == 4
    theirs.eval()
    x = generator.normal(7, 3, (2, 3, 4, 5))
    assert_close(module.apply(variables, x, train=False)[0], to_numpy(theirs(to_torch(x))), 1e-12)


@pytest.mark.parity
@pytest.mark.parametrize('scale', [2, 3, 4])
def test_pixel_shuffle_order(scale: int, torch: Any) -> None:
    x = np.arange(2.0 * 3 * 5 * 3 * scale**2).reshape(2, 3, 5, -1)
    theirs = to_numpy(torch.nn.functional.pixel_shuffle(to_torch(x), scale))
    np.testing.assert_array_equal(pixel_shuffle(jnp.asarray(x), scale), theirs)


@pytest.mark.parity
@pytest.mark.parametrize(('padding', 'theirs'), [('SAME', 1), ('VALID', 0)])
def test_convolution(padding: str, theirs: int, torch: Any) -> None:
    generator = np.random.default_rng(1)
    x, kernel = generator.normal(size=(2, 5, 6, 4)), generator.normal(size=(3, 3, 4, 7))
    bias = generator.normal(size=7)
    weight = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
    expected = torch.nn.functional.conv2d(
        to_torch(x), weight, torch.from_numpy(bias), padding=theirs
    )
    found = conv(jnp.asarray(x), {'kernel': jnp.asarray(kernel), 'bias': bias}, padding=padding)
    assert_close(found, to_numpy(expected), 1e-12)


def test_leaky_relu_has_pytorchs_derivative_at_zero() -> None:
    x = jnp.array([-2.0, 0.0, 3.0])
    assert_close(leaky_relu(x, 0.1), [-0.2, 0.0, 3.0], 1e-15)
    assert_close(jax.vmap(jax.grad(lambda v: leaky_relu(v, 0.1)))(x), [0.1, 0.1, 1.0], 0)


def test_border() -> None:
    padded = pad_border(jnp.ones((2, 2, 3, 2)), jnp.array([5.0, 7.0]))
    assert padded.shape == (2, 4, 5, 2)
    assert_close(padded[:, 1:-1, 1:-1], np.ones((2, 2, 3, 2)), 0)
    for rim in (padded[:, 0], padded[:, -1], padded[:, :, 0], padded[:, :, -1]):
        assert_close(rim, np.broadcast_to([5.0, 7.0], rim.shape), 0)


def test_initial_distribution_is_pytorchs() -> None:
    variables = Conv(40, 60).init(jax.random.key(0), jnp.zeros((1, 3, 3, 40)))
    kernel, bias = variables['params']['kernel'], variables['params']['bias']
    bound = (40 * 9) ** -0.5
    for values in (kernel, bias):
        assert abs(values).max() <= bound
        assert abs(values).max() > 0.9 * bound
    # A uniform distribution: mean 0 and deviation bound/sqrt(3), each to five standard errors.
    assert abs(kernel.mean()) < 5 * bound / 3**0.5 / kernel.size**0.5
    assert_close(kernel.std(), bound / 3**0.5, 5 * bound / kernel.size**0.5)


@pytest.mark.slow
def test_initial_batch_norms() -> None:
    config = FMENConfig(n_feats=6, mid_feats=6, down_blocks=1, up_blocks=(0, 0))
    init = jax.jit(config.build('collapsed').init)
    variables = init(jax.random.key(0), jnp.ones((1, 5, 5, 3)))
    norm, stats = (variables[c]['HFABs_0']['bn1'] for c in ('params', 'batch_stats'))
    assert_close([norm['scale'], norm['bias']], [np.ones(6), np.zeros(6)], 0)
    assert_close([stats['mean'], stats['var']], [np.zeros(6), np.ones(6)], 0)
    assert stats['num_batches_tracked'] == 0


def test_the_gradient_of_a_bias_in_bfloat16_is_a_sum_in_float32() -> None:
    params = {'kernel': jnp.zeros((3, 3, 1, 1), jnp.float32), 'bias': jnp.zeros(1, jnp.float32)}
    x = jnp.ones((8, 48, 48, 1), jnp.bfloat16)
    gradient = jax.grad(lambda p: conv(x, p).astype(jnp.float32).sum())(params)
    assert gradient['bias'] == x.size  # added one by one in bfloat16 it ends at 256


@pytest.mark.parametrize('pixels', [2, 4])
def test_packed_pixels_give_the_same_convolution(pixels: int) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2, 5, 8, 3)).astype(np.float32)
    params = {
        'kernel': generator.normal(size=(3, 3, 3, 7)).astype(np.float32),
        'bias': generator.normal(size=7).astype(np.float32),
    }
    packed = conv(pack(jnp.asarray(x), pixels), params, packed=pixels)
    assert packed.shape == (2, 5, 8 // pixels, 7 * pixels)
    np.testing.assert_allclose(
        packed.reshape(2, 5, 8, 7), conv(jnp.asarray(x), params), rtol=0, atol=1e-5
    )
    with pytest.raises(InputError, match='a width of 7 cannot be packed'):
        pack(jnp.ones((1, 1, 7, 3)), pixels)


def test_channels_that_are_not_those_of_the_kernel_are_refused() -> None:
    params = {'kernel': jnp.ones((3, 3, 50, 4)), 'bias': jnp.ones(4)}
    with pytest.raises(InputError, match='x has 100 channels; the kernel has 50'):
        conv(jnp.ones((1, 5, 5, 100)), params)
    with pytest.raises(InputError, match='x has 100 channels; the kernel has 50, of 4 packed'):
        conv(jnp.ones((1, 5, 5, 100)), params, packed=4)


@pytest.mark.parametrize('train', [False, True])
def test_batch_norm_of_packed_pixels_and_centered(train: bool) -> None:
    x = np.random.default_rng(0).normal(3, 2, (2, 4, 6, 5)).astype(np.float32)
    module = BatchNorm(5)
    variables = module.init(jax.random.key(0), jnp.asarray(x), train=False)
    variables['params']['bias'] += 0.5
    run = functools.partial(module.apply, variables, train=train, mutable=['batch_stats'])
    (y, border), stats = run(jnp.asarray(x))
    packs = functools.partial(
        BatchNorm(5, packed=2).apply, variables, train=train, mutable=['batch_stats']
    )
    (packed, _), others = packs(pack(jnp.asarray(x), 2))
    np.testing.assert_allclose(packed.reshape(x.shape), y, rtol=0, atol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), stats, others)
    (centered, same), _ = run(jnp.asarray(x), centered=True)
    np.testing.assert_allclose(np.asarray(centered) + np.asarray(border), y, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(same, border)
    assert np.abs(border).min() > 0.1
