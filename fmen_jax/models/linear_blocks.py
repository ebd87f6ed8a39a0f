"""Linear blocks c -> c that collapse to one 3x3 convolution, and the protocol for one's own.

A block is a subclass of `LinearBlock` with a train graph and one pure function, `collapse`. The
base class derives the rest: the deploy graph, training through the collapsed kernel, and, together
with `models.variant`, folding, checkpoints, cost and export. `check` compares the three graphs.

Images are NHWC; kernels are [kh, kw, in, out]. The functions `in_series`, `in_parallel`,
`identity` and `with_norm` are the pieces of which a `collapse` is made.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from fmen_jax.errors import InputError
from fmen_jax.models import reparam
from fmen_jax.models.layers import (
    SAVED,
    BatchNorm,
    Conv,
    Graph,
    Params,
    conv,
    pad_border,
    uniform_fan_in,
)

# The fold must not lose digits to the default precision of an accelerator.
_einsum = partial(jnp.einsum, precision='highest')


class LinearBlock(nn.Module):
    """A linear block of `features` channels in one of the three graphs.

    A subclass defines its train graph by `layers` and `expanded`, and `collapse`. The sizes of the
    parameters may depend on `features` and `expand_ratio` only.

    The 'deploy' graph has one convolution, `rep_conv`. 'expanded' computes the train graph as it
    is. 'collapsed' computes `collapse` of the same parameters and one convolution. A block with
    batch norms uses the statistics of the batch in the 'expanded' graph in training, and the
    running statistics, which it does not change, in the 'collapsed' graph.
    """

    features: int
    graph: Graph = 'deploy'
    expand_ratio: int = 2
    """Width of the train graph as a multiple of `features`, for blocks that have a wide map."""

    def layers(self) -> None:
        """Define the submodules and parameters of the train graph, as Flax's `setup` does.

        Batch norms are named bn1, bn2, ..., as in PyTorch checkpoints.
        """
        raise NotImplementedError

    def expanded(self, x: Array, *, train: bool) -> Array:
        """Apply the train graph to x [N, H, W, features]; the result has the same shape."""
        raise NotImplementedError

    @staticmethod
    def collapse(params: Params, statistics: Params) -> Params:
        """Return the zero-padded 3x3 convolution that is equivalent to the train graph.

        Args:
          params: parameters of the block.
          statistics: running statistics of its batch norms, {} if it has none.

        Returns:
          `kernel` [3, 3, features, features] and `bias` [features]. A pure function of arrays,
          which is differentiated in training and must be exact at image borders.
        """
        raise NotImplementedError

    @staticmethod
    def initial(drawn: Params, generator: np.random.Generator) -> Params:
        """Return the parameters before training, which are drawn with NumPy.

        Args:
          drawn: parameters in PyTorch's default distribution: convolutions uniform in
            +-1/sqrt(fan_in), batch norms 1 and 0. All other parameters are 0. Flax's initializers
            are not used, because running them takes minutes to compile for a whole network.
          generator: the source of random numbers.
        """
        del generator
        return drawn

    def setup(self) -> None:
        if self.graph == 'deploy':
            self.rep_conv = Conv(self.features, self.features)
        else:
            self.layers()

    def __call__(self, x: Array, *, train: bool = False) -> Array:
        if self.graph == 'deploy':
            return self.rep_conv(x)
        if self.graph == 'expanded' or self.is_initializing():
            return self.expanded(x, train=train)
        dtype = jnp.promote_types(x.dtype, jnp.float32)  # do not collapse in bfloat16
        variables = jax.tree.map(lambda leaf: leaf.astype(dtype), dict(self.variables))
        statistics = lax.stop_gradient(variables.get('batch_stats', {}))
        return conv(x, self.collapse(variables['params'], statistics))


def in_series(first: Params, second: Params) -> Params:
    """Return the convolution that is equivalent to two in succession, one of which is 1x1.

    If the second one is larger than 1x1, its input must be padded with the bias of the first one,
    which is the output of the first one for a zero input. The result is then zero-padded.
    """
    if first['kernel'].shape[:2] == (1, 1):
        kernel = _einsum('im,yxmo->yxio', first['kernel'][0, 0], second['kernel'])
    else:
        kernel = _einsum('yxim,mo->yxio', first['kernel'], second['kernel'][0, 0])
    lost = _einsum('m,yxmo->o', first['bias'], second['kernel'])
    return {'kernel': kernel, 'bias': second['bias'] + lost}


def in_parallel(*branches: Params) -> Params:
    """Return the 3x3 convolution that is equivalent to the sum of zero-padded convolutions.

    Their kernels have odd sizes up to 3.
    """

    def padded(kernel: Array) -> Array:
        y, x = ((3 - size) // 2 for size in kernel.shape[:2])
        return jnp.pad(kernel, ((y, y), (x, x), (0, 0), (0, 0)))

    kernel = sum((padded(branch['kernel']) for branch in branches), jnp.zeros(()))
    return {'kernel': kernel, 'bias': sum((b['bias'] for b in branches), jnp.zeros(()))}


def identity(features: int, dtype: Any) -> Params:
    """Return a skip connection as a 1x1 convolution."""
    eye = jnp.eye(features, dtype=dtype)[None, None]
    return {'kernel': eye, 'bias': jnp.zeros(features, dtype)}


def without_bias(params: Params) -> Params:
    """Return a convolution that has no bias as one whose bias is 0."""
    return {'kernel': params['kernel'], 'bias': jnp.zeros_like(params['kernel'][0, 0, 0])}


def with_norm(convolution: Params, norm: Params, statistics: Params) -> Params:
    """Return the convolution that is equivalent to one and a batch norm in eval mode after it."""
    return reparam.fold_after(convolution, *reparam.affine(norm, statistics, BatchNorm.epsilon))


BLOCKS: dict[str, type[LinearBlock]] = {}
"""Linear blocks by name; see `register_block`."""

_Block = TypeVar('_Block', bound=type[LinearBlock])


def register_block(name: str) -> Callable[[_Block], _Block]:
    """Return a class decorator that makes a linear block known under a name.

    A checkpoint stores the name. Its train graph can only be loaded after the module that defines
    the block has been imported; its deploy graph needs no block.

    Raises:
      InputError: If another block has that name.
    """

    def register(block: _Block) -> _Block:
        known = BLOCKS.get(name)
        if known and (known.__module__, known.__qualname__) != (
            block.__module__,
            block.__qualname__,
        ):
            raise InputError(
                f'there is a linear block {name!r} already, {known.__module__}.'
                f'{known.__qualname__}: choose another name.'
            )
        BLOCKS[name] = block
        return block

    return register


def block_class(name: str) -> type[LinearBlock]:
    """Return the linear block of a name.

    Raises:
      InputError: If no block of that name is registered.
    """
    if name not in BLOCKS:
        raise InputError(
            f'no linear block {name!r} is registered; there are {", ".join(BLOCKS)}. Import the '
            f'Python module that defines it, in which @register_block({name!r}) from '
            'fmen_jax.models.linear_blocks stands before its class, and try again. No code is '
            'imported on behalf of a checkpoint.'
        )
    return BLOCKS[name]


@lru_cache
def has_norms(block: type[LinearBlock]) -> bool:
    """Return whether a block has batch norms in its train graph."""
    return 'batch_stats' in _shapes(block, 4)


def _shapes(block: type[LinearBlock], features: int) -> Any:
    x = jax.ShapeDtypeStruct((1, 1, 1, features), jnp.float32)
    return jax.eval_shape(block(features, 'expanded').init, jax.random.key(0), x)


SIZES = ((1, 1), (2, 3), (17, 23))
"""Heights and widths at which `check` compares the graphs, from one pixel to odd sizes."""


def check(block: type[LinearBlock], *, features: int = 6, bound: float = 1e-9) -> float:
    """Check that the three graphs of a block are one function, and that its gradients agree.

    Computed in float64 with random parameters and random running statistics, at all `SIZES`.
    Batch norms use their running statistics.

    Args:
      block: the block.
      features: number of channels.
      bound: largest accepted difference. Outputs and gradients are of the order of 1 to 100.

    Returns:
      The largest absolute difference of an output or a gradient.

    Raises:
      InputError: If a difference is larger than `bound`; names the graphs and the size.
    """
    generator = np.random.default_rng(0)
    worst = 0.0
    with jax.enable_x64(True):
        variables = _random(_shapes(block, features), generator)
        params = variables.pop('params')

        def run(graph: Graph, params: Params, x: Any) -> Any:
            if graph == 'deploy':
                convolution = block.collapse(params, variables.get('batch_stats', {}))
                return block(features).apply({'params': {'rep_conv': convolution}}, x)
            return block(features, graph).apply({'params': params, **variables}, x)

        def results(params: Params, x: Any) -> Any:
            y, back = jax.vjp(partial(run, 'expanded'), params, x)
            z, collapsed_back = jax.vjp(partial(run, 'collapsed'), params, x)
            expanded, collapsed = (y, *back(jnp.cos(y))), (z, *collapsed_back(jnp.cos(y)))
            return expanded, collapsed, run('deploy', params, x)

        for size in SIZES:
            x = generator.normal(0, 1, (2, *size, features))
            # compiling takes far longer than running, so the compiler does not optimize
            program = jax.jit(results).lower(params, x)
            compiled = program.compile(compiler_options={'xla_backend_optimization_level': '0'})
            (y, *gradients), (z, *others), deployed = compiled(params, x)
            for what, found, expected in (
                ('outputs of the collapsed and', z, y),
                ('gradients of the collapsed and', others, gradients),
                ('outputs of the deploy and', deployed, y),
            ):
                difference = jax.tree.map(lambda a, b: float(abs(a - b).max()), found, expected)
                largest = max(jax.tree.leaves(difference))
                if not largest <= bound:
                    raise InputError(
                        f'{block.__name__}: the {what} the expanded graph differ by up to '
                        f'{largest:.3g} at {size[0]}x{size[1]} pixels; expected {bound:.0e} or '
                        'less. Compare `collapse` with `expanded`, at the border first.'
                    )
                worst = max(worst, largest)
    return worst


def _random(shapes: Any, generator: np.random.Generator) -> Any:
    """Return variables whose statistics, gains and shifts are far from their initial values."""

    def leaf(path: Any, like: Any) -> np.ndarray:
        if path[-1].key == 'var':
            return generator.uniform(0.5, 2, like.shape)
        if path[-1].key == 'kernel':
            return generator.normal(0, np.prod(like.shape[:3]) ** -0.5, like.shape)
        return generator.normal(0, 1, like.shape)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


class _Kernel(nn.Module):
    """Convolution without bias; `padding` is SAME (zeros) or VALID."""

    inputs: int
    features: int
    size: tuple[int, int] = (3, 3)
    padding: str = 'SAME'

    def setup(self) -> None:
        init = uniform_fan_in(self.inputs * self.size[0] * self.size[1])
        self.kernel = self.param('kernel', init, (*self.size, self.inputs, self.features))

    def __call__(self, x: Array) -> Array:
        return conv(x, without_bias({'kernel': self.kernel}), padding=self.padding)


@register_block('conv')
class PlainConv(LinearBlock):
    """A 3x3 convolution with zero padding: the block that the others collapse to."""

    def layers(self) -> None:
        self.rep_conv = Conv(self.features, self.features)

    def expanded(self, x: Array, *, train: bool) -> Array:
        del train
        return self.rep_conv(x)

    @staticmethod
    def collapse(params: Params, statistics: Params) -> Params:
        del statistics
        return params['rep_conv']


@register_block('rrrb')
class RRRBlock(LinearBlock):
    """FMEN's RRRB (arXiv 2204.08397, fig. 3), with the parameters of `models.fmen.RRRB`."""

    def layers(self) -> None:
        c, wide = self.features, self.features * self.expand_ratio
        self.expand_conv = Conv(c, wide, size=1)
        self.fea_conv = Conv(wide, wide, padding='VALID')
        self.reduce_conv = Conv(wide, c, size=1)

    def expanded(self, x: Array, *, train: bool) -> Array:
        del train
        wide = self.expand_conv(x)
        wide = self.fea_conv(_pad_with_bias(wide, self.expand_conv)) + wide
        return self.reduce_conv(wide) + x

    @staticmethod
    def collapse(params: Params, statistics: Params) -> Params:
        del statistics
        return reparam.collapse(params)


@register_block('conv3xc')
class Conv3XC(LinearBlock):
    """SPAN's Conv3XC (hongyuanyu/SPAN): three convolutions of a zero-padded x, and a 1x1 skip.

    x is padded before the first, biased 1x1 convolution, so its output is the bias at the border.
    `expand_ratio` is the gain, 2 in the published code.
    """

    def layers(self) -> None:
        c, wide = self.features, self.features * self.expand_ratio
        self.conv1 = Conv(c, wide, size=1)
        self.conv2 = Conv(wide, wide, padding='VALID')
        self.conv3 = Conv(wide, c, size=1)
        self.skip = Conv(c, c, size=1)

    def expanded(self, x: Array, *, train: bool) -> Array:
        del train
        padded = pad_border(x, jnp.zeros(self.features, x.dtype))
        return self.conv3(self.conv2(self.conv1(padded))) + self.skip(x)

    @staticmethod
    def collapse(params: Params, statistics: Params) -> Params:
        del statistics
        trunk = in_series(in_series(params['conv1'], params['conv2']), params['conv3'])
        return in_parallel(trunk, params['skip'])


_SOBEL = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
_MASKS = {
    'sobel_x': _SOBEL,
    'sobel_y': _SOBEL.T,
    'laplacian': np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]]),
}


class _Masked(nn.Module):
    """Depthwise 3x3 convolution with a fixed mask times `scale` [C], plus `bias` [C]; VALID."""

    features: int
    mask: str

    def setup(self) -> None:
        init = nn.initializers.normal(1e-3)
        self.scale = self.param('scale', init, (self.features,))
        self.bias = self.param('bias', init, (self.features,))

    def __call__(self, x: Array) -> Array:
        mask = jnp.asarray(_MASKS[self.mask], x.dtype).reshape(3, 3, 1, 1)
        y = lax.conv_general_dilated(
            x,
            mask * self.scale.astype(x.dtype).reshape(1, 1, 1, -1),
            (1, 1),
            'VALID',
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            feature_group_count=self.features,
        )
        return checkpoint_name(y + self.bias.astype(x.dtype).reshape(1, 1, 1, -1), SAVED)


@register_block('ecb')
class ECB(LinearBlock):
    """Edge-oriented convolution block (xindongzhang/ECBSR), without the optional identity.

    The sum of a 3x3 convolution, an expanded one (1x1, 3x3) and three edge filters, each after a
    1x1 convolution: Sobel x, Sobel y, Laplacian. `expand_ratio` is the depth multiplier, 2 in the
    published code. Inner maps are padded with the bias of the convolution before.
    """

    def layers(self) -> None:
        c, wide = self.features, self.features * self.expand_ratio
        self.conv3x3 = Conv(c, c)
        self.expand_conv = Conv(c, wide, size=1)
        self.reduce_conv = Conv(wide, c, padding='VALID')
        for name in _MASKS:
            setattr(self, f'{name}_conv', Conv(c, c, size=1))
            setattr(self, name, _Masked(c, name))

    def expanded(self, x: Array, *, train: bool) -> Array:
        del train
        y = self.conv3x3(x)
        y = y + self.reduce_conv(_pad_with_bias(self.expand_conv(x), self.expand_conv))
        for name in _MASKS:
            first = getattr(self, f'{name}_conv')
            y = y + getattr(self, name)(_pad_with_bias(first(x), first))
        return y

    @staticmethod
    def collapse(params: Params, statistics: Params) -> Params:
        del statistics

        def masked(name: str) -> Params:
            scale = params[name]['scale']
            mask = jnp.asarray(_MASKS[name], scale.dtype).reshape(3, 3, 1, 1)
            return {'kernel': mask * jnp.diag(scale)[None, None], 'bias': params[name]['bias']}

        return in_parallel(
            params['conv3x3'],
            in_series(params['expand_conv'], params['reduce_conv']),
            *(in_series(params[f'{name}_conv'], masked(name)) for name in _MASKS),
        )

    @staticmethod
    def initial(drawn: Params, generator: np.random.Generator) -> Params:
        def small(leaf: np.ndarray) -> np.ndarray:
            return generator.normal(0, 1e-3, leaf.shape).astype(leaf.dtype)

        return drawn | {name: jax.tree.map(small, drawn[name]) for name in _MASKS}


@register_block('repvgg')
class RepVGG(LinearBlock):
    """RepVGG's block (DingXiaoH/RepVGG): BN(3x3) + BN(1x1) + BN(x), convolutions without bias."""

    def layers(self) -> None:
        c = self.features
        self.conv3x3, self.conv1x1 = _Kernel(c, c), _Kernel(c, c, (1, 1))
        self.bn1, self.bn2, self.bn3 = BatchNorm(c), BatchNorm(c), BatchNorm(c)

    def expanded(self, x: Array, *, train: bool) -> Array:
        branches = (self.conv3x3(x), self.bn1), (self.conv1x1(x), self.bn2), (x, self.bn3)
        return sum((norm(y, train=train)[0] for y, norm in branches), jnp.zeros((), x.dtype))

    @staticmethod
    def collapse(params: Params, statistics: Params) -> Params:
        kernel = params['conv1x1']['kernel']
        branches = {
            'bn1': without_bias(params['conv3x3']),
            'bn2': without_bias(params['conv1x1']),
            'bn3': identity(kernel.shape[2], kernel.dtype),
        }
        return _sum_of_normed(branches, params, statistics)


@register_block('acb')
class ACB(LinearBlock):
    """Asymmetric convolution block (DingXiaoH/ACNet): BN(3x3) + BN(3x1) + BN(1x3), no biases."""

    def layers(self) -> None:
        c = self.features
        self.conv3x3, self.conv3x1, self.conv1x3 = (
            _Kernel(c, c, size) for size in ((3, 3), (3, 1), (1, 3))
        )
        self.bn1, self.bn2, self.bn3 = BatchNorm(c), BatchNorm(c), BatchNorm(c)

    def expanded(self, x: Array, *, train: bool) -> Array:
        y = self.bn1(self.conv3x3(x), train=train)[0]
        y = y + self.bn2(self.conv3x1(x), train=train)[0]
        return y + self.bn3(self.conv1x3(x), train=train)[0]

    @staticmethod
    def collapse(params: Params, statistics: Params) -> Params:
        names = {'bn1': 'conv3x3', 'bn2': 'conv3x1', 'bn3': 'conv1x3'}
        branches = {norm: without_bias(params[name]) for norm, name in names.items()}
        return _sum_of_normed(branches, params, statistics)


@register_block('dbb')
class DBB(LinearBlock):
    """Diverse branch block (DingXiaoH/DiverseBranchBlock), convolutions without bias.

    The sum of four branches: BN(3x3); BN(1x1); 1x1, BN, 3x3, BN; and 1x1, BN, 3x3 mean, BN. The
    first 1x1 convolution of the third branch is the identity plus a kernel that starts at 0. Maps
    before an inner 3x3 are padded with the value that their batch norm has for a zero input.
    The published code does not propagate gradients through these padded values; this block does,
    so that the gradients of its graphs agree.
    """

    def layers(self) -> None:
        c = self.features
        self.conv3x3, self.conv1x1 = _Kernel(c, c), _Kernel(c, c, (1, 1))
        self.deep_conv1x1, self.deep_conv3x3 = _Kernel(c, c, (1, 1)), _Kernel(c, c, padding='VALID')
        self.mean_conv1x1 = _Kernel(c, c, (1, 1))
        for number in range(1, 7):
            setattr(self, f'bn{number}', BatchNorm(c))

    def expanded(self, x: Array, *, train: bool) -> Array:
        y = self.bn1(self.conv3x3(x), train=train)[0] + self.bn2(self.conv1x1(x), train=train)[0]
        deep = pad_border(*self.bn3(self.deep_conv1x1(x) + x, train=train))
        y = y + self.bn4(self.deep_conv3x3(deep), train=train)[0]
        mean = pad_border(*self.bn5(self.mean_conv1x1(x), train=train))
        mean = nn.avg_pool(mean, (3, 3))
        return y + self.bn6(mean, train=train)[0]

    @staticmethod
    def collapse(params: Params, statistics: Params) -> Params:
        def normed(convolution: Params, name: str) -> Params:
            return with_norm(convolution, params[name], statistics[name])

        deep = without_bias(params['deep_conv1x1'])
        skip = identity(deep['kernel'].shape[2], deep['kernel'].dtype)
        deep = jax.tree.map(jnp.add, deep, skip)
        mean = without_bias(
            {'kernel': jnp.broadcast_to(skip['kernel'] / 9, (3, 3, *skip['kernel'].shape[2:]))}
        )
        return in_parallel(
            normed(without_bias(params['conv3x3']), 'bn1'),
            normed(without_bias(params['conv1x1']), 'bn2'),
            normed(in_series(normed(deep, 'bn3'), without_bias(params['deep_conv3x3'])), 'bn4'),
            normed(in_series(normed(without_bias(params['mean_conv1x1']), 'bn5'), mean), 'bn6'),
        )

    @staticmethod
    def initial(drawn: Params, generator: np.random.Generator) -> Params:
        del generator
        return drawn | {'deep_conv1x1': jax.tree.map(np.zeros_like, drawn['deep_conv1x1'])}


@register_block('repsr')
class RepSR(LinearBlock):
    """RepSR's block (TencentARC/RepSR, by its description): x + two times 3x3, BN, 1x1.

    The 3x3 convolution c -> 2c has no bias, the 1x1 convolution 2c -> c has one. The published
    recipe trains with batch statistics first and with population statistics later: here the
    'expanded' graph, and then the 'collapsed' graph from its weights.
    """

    def layers(self) -> None:
        c, wide = self.features, self.features * self.expand_ratio
        self.conv3x3_1, self.conv3x3_2 = _Kernel(c, wide), _Kernel(c, wide)
        self.bn1, self.bn2 = BatchNorm(wide), BatchNorm(wide)
        self.conv1x1_1, self.conv1x1_2 = Conv(wide, c, size=1), Conv(wide, c, size=1)

    def expanded(self, x: Array, *, train: bool) -> Array:
        first = self.conv1x1_1(self.bn1(self.conv3x3_1(x), train=train)[0])
        return x + first + self.conv1x1_2(self.bn2(self.conv3x3_2(x), train=train)[0])

    @staticmethod
    def collapse(params: Params, statistics: Params) -> Params:
        def branch(number: int) -> Params:
            convolution = without_bias(params[f'conv3x3_{number}'])
            name = f'bn{number}'
            normed = with_norm(convolution, params[name], statistics[name])
            return in_series(normed, params[f'conv1x1_{number}'])

        kernel = params['conv1x1_1']['kernel']
        return in_parallel(identity(kernel.shape[3], kernel.dtype), branch(1), branch(2))


def _pad_with_bias(x: Array, convolution: Conv) -> Array:
    """Pad the output of a convolution with its bias: its output for a zero input."""
    return pad_border(x, convolution.bias.astype(x.dtype))


def _sum_of_normed(branches: dict[str, Params], params: Params, statistics: Params) -> Params:
    """Return the sum of convolutions by the name of the batch norm after each."""
    return in_parallel(
        *(with_norm(branches[name], params[name], statistics[name]) for name in branches)
    )
