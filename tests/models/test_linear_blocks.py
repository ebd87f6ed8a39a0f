"""Linear blocks: three graphs of each are one function, and two are what PyTorch computes."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmen_jax.errors import InputError
from fmen_jax.models import fmen
from fmen_jax.models.initial import draw
from fmen_jax.models.layers import Params
from fmen_jax.models.linear_blocks import (
    BLOCKS,
    ECB,
    RRRBlock,
    block_class,
    check,
    has_norms,
    register_block,
)
from tests.helpers import assert_close, corrupted, differs

# Float64, on sums of a few hundred products of numbers of order 1 to 100.
BOUND = 1e-9


@pytest.mark.parametrize('name', BLOCKS)
def test_expanded_collapsed_and_deploy_graph_are_one_function(name: str) -> None:
    assert check(BLOCKS[name], features=4, bound=BOUND) > 0 or name == 'conv'


class WrongAtTheBorder(RRRBlock):
    """Pads the wide map with zeros, which a collapse cannot express."""

    def expanded(self, x: jax.Array, *, train: bool) -> jax.Array:
        wide = self.expand_conv(x)
        padded = jnp.pad(wide, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return self.reduce_conv(self.fea_conv(padded) + wide) + x


def test_check_finds_a_wrong_border() -> None:
    with pytest.raises(InputError, match=r'outputs of the collapsed .* differ .* at 1x1 pixels'):
        check(WrongAtTheBorder, features=4)


def shapes(name: str, c: int, graph: str = 'expanded', ratio: int = 2) -> Any:
    x = jnp.zeros((1, 3, 3, c))
    return jax.eval_shape(BLOCKS[name](c, graph, ratio).init, jax.random.key(0), x)


C, W = 5, 10  # features, and the width at a ratio of 2
COUNTS = {
    'conv': 9 * C * C + C,
    'rrrb': (C * W + W) + (9 * W * W + W) + (W * C + C),
    'conv3xc': (C * W + W) + (9 * W * W + W) + (W * C + C) + (C * C + C),
    'ecb': (9 * C * C + C) + (C * W + W) + (9 * W * C + C) + 3 * (C * C + C + C + C),
    'repvgg': 9 * C * C + C * C + 3 * 2 * C,
    'acb': (9 + 3 + 3) * C * C + 3 * 2 * C,
    'dbb': (9 + 1 + 1 + 9 + 1) * C * C + 6 * 2 * C,
    'repsr': 2 * (9 * C * W + 2 * W + W * C + C),
}


@pytest.mark.parametrize('name', BLOCKS)
def test_parameter_counts_are_those_by_hand(name: str) -> None:
    for graph, expected in (('expanded', COUNTS[name]), ('deploy', 9 * C * C + C)):
        params = shapes(name, C, graph)['params']
        assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == expected
    assert has_norms(BLOCKS[name]) == (name in ('repvgg', 'acb', 'dbb', 'repsr'))


def test_rrrb_is_that_of_fmen() -> None:
    x = np.random.default_rng(0).normal(0, 1, (1, 4, 5, 6)).astype(np.float32)
    variables = draw(shapes('rrrb', 6, ratio=3), np.random.default_rng(1))
    for graph in ('expanded', 'collapsed'):
        ours = RRRBlock(6, graph, 3).apply(variables, x)
        np.testing.assert_array_equal(ours, fmen.RRRB(6, 3, graph).apply(variables, x))


def random_variables(name: str, c: int) -> Any:
    """Variables in float64 with statistics, gains and shifts far from their initial values."""
    generator = np.random.default_rng(2)

    def leaf(path: Any, like: Any) -> np.ndarray:
        if path[-1].key == 'num_batches_tracked':
            return np.zeros((), np.int32)
        low, high = (0.5, 2) if path[-1].key in ('var', 'scale') else (-0.5, 0.5)
        return generator.uniform(low, high, like.shape)

    return jax.tree_util.tree_map_with_path(leaf, shapes(name, c))


def oihw(torch: Any, params: Params) -> Any:
    return torch.tensor(params['kernel'].transpose(3, 2, 0, 1))


def ecb_in_torch(torch: Any, params: Params, x: Any) -> Any:
    """Written from ECBSR's models/ecb.py: pad each 1x1 map with its bias, then a VALID 3x3."""
    F = torch.nn.functional  # noqa: N806

    def conv(x: Any, name: str, **options: Any) -> Any:
        bias = torch.tensor(params[name]['bias'])
        return F.conv2d(x, oihw(torch, params[name]), bias, **options)

    def padded(x: Any, name: str) -> Any:
        y = F.pad(conv(x, name), (1, 1, 1, 1))
        bias = torch.tensor(params[name]['bias']).view(1, -1, 1, 1)
        y[:, :, 0:1, :] = y[:, :, -1:, :] = bias
        y[:, :, :, 0:1] = y[:, :, :, -1:] = bias
        return y

    y = conv(x, 'conv3x3', padding=1) + conv(padded(x, 'expand_conv'), 'reduce_conv')
    sobel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    laplacian = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    for name, mask in (('sobel_x', sobel), ('sobel_y', sobel.T), ('laplacian', laplacian)):
        scale, bias = (torch.tensor(params[name][leaf]) for leaf in ('scale', 'bias'))
        kernel = scale.view(-1, 1, 1, 1) * mask.double()
        y = y + F.conv2d(padded(x, f'{name}_conv'), kernel, bias, groups=len(scale))
    return y


@pytest.mark.usefixtures('x64')
def test_ecb_is_that_of_pytorch(torch: Any) -> None:
    x = np.random.default_rng(3).normal(0, 1, (2, 5, 4, C))
    variables = random_variables('ecb', C)
    expected = ecb_in_torch(torch, variables['params'], torch.tensor(x.transpose(0, 3, 1, 2)))

    def ours(variables: Any) -> Any:
        return np.moveaxis(np.asarray(ECB(C, 'expanded').apply(variables, x)), 3, 1)

    assert_close(ours(variables), expected.numpy(), BOUND)
    assert differs(ours(corrupted(variables)), expected.numpy(), BOUND)


def dbb_in_torch(torch: Any, variables: Any, x: Any, train: bool) -> tuple[Any, Any]:
    """Written from the description of DiverseBranchBlock; returns the output and the norms."""
    F = torch.nn.functional  # noqa: N806
    params, stats = variables['params'], variables['batch_stats']
    norms = {}
    for name in stats:
        norm = norms[name] = torch.nn.BatchNorm2d(C).double().train(train)
        norm.weight.data = torch.tensor(params[name]['scale'])
        norm.bias.data = torch.tensor(params[name]['bias'])
        norm.running_mean = torch.tensor(stats[name]['mean'])
        norm.running_var = torch.tensor(stats[name]['var'])

    def conv(x: Any, name: str, **options: Any) -> Any:
        return F.conv2d(x, oihw(torch, params[name]), **options)

    def padded(x: Any, name: str) -> Any:
        y = F.pad(norms[name](x), (1, 1, 1, 1))
        n = norms[name]
        border = n.bias - n.running_mean * n.weight / torch.sqrt(n.running_var + n.eps)
        inside = F.pad(torch.ones_like(x), (1, 1, 1, 1))
        return torch.where(inside > 0, y, border.view(1, -1, 1, 1))

    y = norms['bn1'](conv(x, 'conv3x3', padding=1)) + norms['bn2'](conv(x, 'conv1x1'))
    deep = padded(x + conv(x, 'deep_conv1x1'), 'bn3')
    y = y + norms['bn4'](conv(deep, 'deep_conv3x3'))
    mean = F.avg_pool2d(padded(conv(x, 'mean_conv1x1'), 'bn5'), 3, stride=1)
    return y + norms['bn6'](mean), norms


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('train', [False, True])
def test_dbb_is_that_of_pytorch(torch: Any, train: bool) -> None:
    x = np.random.default_rng(3).normal(0, 1, (2, 5, 4, C))
    variables = random_variables('dbb', C)
    expected, norms = dbb_in_torch(torch, variables, torch.tensor(x.transpose(0, 3, 1, 2)), train)
    block = BLOCKS['dbb'](C, 'expanded')

    def ours(variables: Any) -> Any:
        y, update = block.apply(variables, x, train=train, mutable=['batch_stats'])
        return np.moveaxis(np.asarray(y), 3, 1), update['batch_stats']

    y, stats = ours(variables)
    assert_close(y, expected.detach().numpy(), BOUND)
    for name, norm in norms.items():
        assert_close(stats[name]['mean'], norm.running_mean.numpy(), BOUND)
        assert_close(stats[name]['var'], norm.running_var.numpy(), BOUND)
    assert differs(ours(corrupted(variables))[0], expected.detach().numpy(), BOUND)


@pytest.mark.parametrize('name', ['rrrb', 'repvgg'])
def test_the_collapsed_graph_leaves_the_statistics_and_trains_the_rest(name: str) -> None:
    x = np.random.default_rng(0).normal(0, 1, (2, 3, 3, 4)).astype(np.float32)
    block = BLOCKS[name](4, 'collapsed')
    variables = draw(shapes(name, 4), np.random.default_rng(1))

    def loss(params: Any) -> Any:
        y, update = block.apply(
            {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
        )
        return jnp.square(y).sum(), update.get('batch_stats', {})

    gradients, stats = jax.jit(jax.grad(loss, has_aux=True))(variables['params'])
    jax.tree.map(np.testing.assert_array_equal, stats, variables.get('batch_stats', {}))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_initial_values() -> None:
    generator = np.random.default_rng(0)
    ecb = ECB.initial(draw(shapes('ecb', 50), generator)['params'], generator)
    assert ecb['sobel_x']['scale'].std() == pytest.approx(1e-3, rel=0.3)
    assert not np.array_equal(ecb['sobel_x']['scale'], ecb['sobel_y']['scale'])
    dbb = BLOCKS['dbb'].initial(draw(shapes('dbb', 4), generator)['params'], generator)
    assert not dbb['deep_conv1x1']['kernel'].any()
    assert dbb['conv1x1']['kernel'].all()


def test_names() -> None:
    assert register_block('ecb')(ECB) is ECB  # the same class again, as after a reload
    with pytest.raises(InputError, match=r"a linear block 'ecb' already, .*\.ECB"):
        register_block('ecb')(WrongAtTheBorder)
    with pytest.raises(InputError, match=r"no linear block 'mine' is registered; .*rrrb.* Import"):
        block_class('mine')
