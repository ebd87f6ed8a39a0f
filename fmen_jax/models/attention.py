"""Attention blocks as alternatives to FMEN's HFAB, behind one protocol.

An attention block is a subclass of `Attention`. It maps the output y of a backbone block and the
input x of that block, both [N, H, W, n], to [N, H, W, n]; most ignore x. Images are NHWC. Where
there is a map of weights, it is sown as `attention`, with values in 0..1, in `intermediates`.
"""

from collections.abc import Callable
from typing import ClassVar, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from fmen_jax.errors import InputError
from fmen_jax.models import esa, reparam
from fmen_jax.models.layers import BatchNorm, Conv, Graph, Params, leaky_relu
from fmen_jax.models.linear_blocks import LinearBlock, block_class
from fmen_jax.models.protocol import OnnxGraph

SLOPE = 0.1
"""Negative slope of the LeakyReLUs in ERBs and HFABs."""


def make_block(name: str, features: int, graph: Graph, expand_ratio: int) -> LinearBlock:
    """Return a linear block by name; in the deploy graph, which all share, by any name."""
    block = LinearBlock if graph == 'deploy' else block_class(name)
    return block(features, graph, expand_ratio)


def fold_blocks(params: Params, statistics: Params, block: str) -> Params:
    """Return the deploy parameters of an ERB or an RB whose linear blocks have a name."""
    collapse = block_class(block).collapse
    return {name: {'rep_conv': collapse(params[name], statistics.get(name, {}))} for name in params}


class ERB(nn.Module):
    """Enhanced residual block: X, LeakyReLU, X, with no skip; X is a linear block."""

    features: int
    graph: Graph
    block: str
    expand_ratio: int

    def setup(self) -> None:
        c = self.features
        self.conv1 = make_block(self.block, c, self.graph, self.expand_ratio)
        self.conv2 = make_block(self.block, c, self.graph, self.expand_ratio)

    def __call__(self, x: Array, *, train: bool) -> Array:
        return self.conv2(leaky_relu(self.conv1(x, train=train), SLOPE), train=train)


class RB(ERB):
    """EDSR's residual block: X, ReLU, X, plus the input; X is a linear block."""

    def __call__(self, x: Array, *, train: bool) -> Array:
        return self.conv2(jax.nn.relu(self.conv1(x, train=train)), train=train) + x


class Attention(nn.Module):
    """An attention block of `features` channels.

    A subclass defines `setup` and `__call__` and, if its train and deploy graphs differ, `fold`.
    The class variables say what the rest of the package needs to know.
    """

    features: int
    graph: Graph = 'deploy'
    mid_feats: int = 16
    """Number of channels inside the block, for blocks that leave it open."""
    erbs: int = 1
    """Number of ERBs inside the block, for HFABs."""
    block: str = 'rrrb'
    """Linear block of these ERBs."""
    expand_ratio: int = 2
    """Width of these linear blocks in the train graph."""

    is_global: ClassVar[bool] = False
    """Whether an output pixel depends on the whole image, so that tiles are not exact."""
    min_size: ClassVar[int] = 1
    """Minimum height and width of an image in pixels."""

    @classmethod
    def radius(cls, erbs: int) -> int:
        """Return the receptive radius in pixels, if the block is not global."""
        del erbs
        return 0

    def __call__(self, y: Array, x: Array, *, train: bool) -> Array:
        """Apply the block to the output y and the input x of a backbone block."""
        raise NotImplementedError

    @staticmethod
    def fold(params: Params, statistics: Params, block: str) -> Params:
        """Return the deploy parameters, given the parameters and running statistics.

        `block` is the linear block inside.
        """
        del statistics, block
        return params

    @classmethod
    def add_onnx_nodes(cls, graph: OnnxGraph, y: str, x: str, key: str, erbs: int) -> str:
        """Add the nodes of the deploy graph, whose weights are below `key`; return the output.

        Raises:
          InputError: If this kind of attention has no ONNX nodes.
        """
        del graph, y, x, key, erbs
        raise InputError(
            f'the attention {cls.__name__} has no ONNX nodes; export StableHLO instead.'
        )

    def _weigh(self, y: Array, attention: Array) -> Array:
        self.sow('intermediates', 'attention', attention)
        return attention * y


ATTENTION: dict[str, type[Attention]] = {}
"""Attention blocks by name; see `register_attention`."""

_Attention = TypeVar('_Attention', bound=type[Attention])


def register_attention(name: str) -> Callable[[_Attention], _Attention]:
    """Return a class decorator that makes an attention block known under a name.

    Unlike a linear block, an attention block is part of the deploy graph: its module must be
    imported before any checkpoint that contains it is loaded.

    Raises:
      InputError: If another attention block has that name.
    """

    def register(attention: _Attention) -> _Attention:
        known = ATTENTION.get(name)
        if known and (known.__module__, known.__qualname__) != (
            attention.__module__,
            attention.__qualname__,
        ):
            raise InputError(
                f'there is an attention {name!r} already, {known.__module__}.'
                f'{known.__qualname__}: choose another name.'
            )
        ATTENTION[name] = attention
        return attention

    return register


def attention_class(name: str) -> type[Attention]:
    """Return the attention block of a name.

    Raises:
      InputError: If no attention block of that name is registered.
    """
    if name not in ATTENTION:
        raise InputError(
            f'no attention {name!r} is registered; there are {", ".join(ATTENTION)}. Import the '
            f'Python module that defines it, in which @register_attention({name!r}) from '
            'fmen_jax.models.attention stands before its class, and try again. No code is '
            'imported on behalf of a checkpoint.'
        )
    return ATTENTION[name]


@register_attention('none')
class NoAttention(Attention):
    """The identity."""

    def __call__(self, y: Array, x: Array, *, train: bool) -> Array:
        del x, train
        return y

    @classmethod
    def add_onnx_nodes(cls, graph: OnnxGraph, y: str, x: str, key: str, erbs: int) -> str:
        del graph, x, key, erbs
        return y


@register_attention('pa')
class PixelAttention(Attention):
    """Pixel attention, y sigmoid(1x1(y)) (Zhao et al., arXiv 2010.01073; zhaohengyuan1/PAN)."""

    def setup(self) -> None:
        self.conv = Conv(self.features, self.features, size=1)

    def __call__(self, y: Array, x: Array, *, train: bool) -> Array:
        del x, train
        return self._weigh(y, jax.nn.sigmoid(self.conv(y)))

    @classmethod
    def add_onnx_nodes(cls, graph: OnnxGraph, y: str, x: str, key: str, erbs: int) -> str:
        del x, erbs
        return graph.add('Mul', graph.add('Sigmoid', graph.conv(y, f'{key}.conv')), y)


_REDUCTION = 16


@register_attention('ca')
class ChannelAttention(Attention):
    """Channel attention of the mean over the image (Zhang et al., arXiv 1807.02758; RCAN).

    The inner width is features // 16, at least 1.
    """

    is_global: ClassVar = True

    def setup(self) -> None:
        inside = max(self.features // _REDUCTION, 1)
        self.conv_down = Conv(self.features, inside, size=1)
        self.conv_up = Conv(inside, self.features, size=1)

    def statistic(self, y: Array) -> Array:
        """Return the descriptor of each channel, [N, 1, 1, n]."""
        return y.mean((1, 2), keepdims=True)

    def __call__(self, y: Array, x: Array, *, train: bool) -> Array:
        del x, train
        attention = self.conv_up(jax.nn.relu(self.conv_down(self.statistic(y))))
        return self._weigh(y, jax.nn.sigmoid(attention))

    @classmethod
    def add_onnx_nodes(cls, graph: OnnxGraph, y: str, x: str, key: str, erbs: int) -> str:
        del x, erbs
        h = graph.conv(cls._onnx_statistic(graph, y), f'{key}.conv_down')
        h = graph.conv(graph.add('Relu', h), f'{key}.conv_up')
        return graph.add('Mul', graph.add('Sigmoid', h), y)

    @classmethod
    def _onnx_statistic(cls, graph: OnnxGraph, y: str) -> str:
        return graph.add('GlobalAveragePool', y)


@register_attention('cca')
class ContrastAttention(ChannelAttention):
    """Contrast-aware channel attention (Hui et al., arXiv 1909.11856; Zheng222/IMDN).

    The descriptor is the standard deviation plus the mean. The published code has no epsilon in
    the square root, whose gradient is infinite for a flat channel; here 1e-6 is added to the
    variance, in units of the feature maps.
    """

    epsilon: ClassVar[float] = 1e-6

    def statistic(self, y: Array) -> Array:
        mean = y.mean((1, 2), keepdims=True)
        variance = jnp.square(y - mean).mean((1, 2), keepdims=True)  # biased
        return jnp.sqrt(variance + self.epsilon) + mean

    @classmethod
    def _onnx_statistic(cls, graph: OnnxGraph, y: str) -> str:
        mean = graph.add('GlobalAveragePool', y)
        away = graph.add('Sub', y, mean)
        variance = graph.add('GlobalAveragePool', graph.add('Mul', away, away))
        epsilon = graph.add('Constant', value_floats=[cls.epsilon])
        deviation = graph.add('Sqrt', graph.add('Add', variance, epsilon))
        return graph.add('Add', deviation, mean)


@register_attention('esa')
class LongESA(Attention):
    """Enhanced spatial attention as in RFDN, with features // 4 channels; see `models.esa`."""

    is_global: ClassVar = True
    min_size: ClassVar = esa.MIN_SIZE

    def setup(self) -> None:
        self.esa = esa.ESA(self.features, max(self.features // 4, 1), short=False)

    def __call__(self, y: Array, x: Array, *, train: bool) -> Array:
        del x, train
        return self.esa(y)


@register_attention('esa_short')
class ShortESA(LongESA):
    """Enhanced spatial attention as in RLFN, with 16 channels and fewer convolutions."""

    def setup(self) -> None:
        self.esa = esa.ESA(self.features, 16, short=True)


@register_attention('spab')
class SPABGate(Attention):
    """SPAN's parameter-free gate, (y + x) (sigmoid(y) - 0.5) (Wan et al., arXiv 2311.12770)."""

    def __call__(self, y: Array, x: Array, *, train: bool) -> Array:
        del train
        gate = jax.nn.sigmoid(y)
        self.sow('intermediates', 'attention', gate)
        return (gate - 0.5) * (y + x)

    @classmethod
    def add_onnx_nodes(cls, graph: OnnxGraph, y: str, x: str, key: str, erbs: int) -> str:
        del key, erbs
        half = graph.add('Constant', value_floats=[0.5])
        gate = graph.add('Sub', graph.add('Sigmoid', y), half)
        return graph.add('Mul', graph.add('Add', y, x), gate)


def soft_pool(x: Array, window: int, stride: int) -> Array:
    """Return sum(e^x x) / sum(e^x) over square windows of x [N, H, W, C], without padding.

    Computed along rows and then along columns, relative to the largest value of each window, so
    that e^x cannot overflow.
    """
    largest, total, weighted = x, jnp.ones_like(x), x
    for axis in (1, 2):
        count = (x.shape[axis] - window) // stride + 1

        def windows(values: Array, axis: int = axis, count: int = count) -> Array:
            return jnp.stack(
                [
                    lax.slice_in_dim(values, i, i + (count - 1) * stride + 1, stride, axis)
                    for i in range(window)
                ]
            )

        parts = windows(largest)
        top = lax.stop_gradient(parts.max(0, keepdims=True))
        share, largest = jnp.exp(parts - top), top[0]
        total = (share * windows(total)).sum(0)
        weighted = (share * windows(weighted)).sum(0)
    return weighted / total


@register_attention('lia')
class LocalImportance(Attention):
    """Local importance attention (Wang et al., arXiv 2409.13435; icandle/PlainUSR).

    A soft pool with windows of 7 and a stride of 3 weighs each value v by e^v.
    """

    is_global: ClassVar = True  # the resize depends on the size of the image
    min_size: ClassVar = 7

    def setup(self) -> None:
        self.conv1 = Conv(self.features, 16, size=1)
        self.conv2 = Conv(16, 16, stride=2, padding='VALID')
        self.conv3 = Conv(16, self.features)

    def __call__(self, y: Array, x: Array, *, train: bool) -> Array:
        del x, train
        if any(size < self.min_size for size in y.shape[1:3]):
            raise InputError(
                f'the image is {y.shape[2]}x{y.shape[1]} pixels; the attention lia needs '
                f'{self.min_size} or more in width and height: enlarge its canvas.'
            )
        h = self.conv1(y)
        h = soft_pool(h, 7, 3)
        # PyTorch pads a strided convolution by one pixel on each side; SAME does not always
        h = jnp.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
        h = jax.nn.sigmoid(self.conv3(self.conv2(h)))
        h = jax.image.resize(h, y.shape, 'linear', antialias=False)
        return self._weigh(y, h * jax.nn.sigmoid(y[..., :1]))


@register_attention('hfab')
class HFAB(Attention):
    """FMEN's high-frequency attention block with any linear block; see `models.fmen.HFAB`."""

    normed: ClassVar[bool] = True
    """Whether the train graph has the three batch norms."""

    @classmethod
    def radius(cls, erbs: int) -> int:
        return 2 + 2 * erbs

    def setup(self) -> None:
        n, m = self.features, self.mid_feats
        if self.normed and self.graph != 'deploy':
            self.bn1, self.bn2, self.bn3 = BatchNorm(n), BatchNorm(m), BatchNorm(n)
        self.squeeze = Conv(n, m)
        self.convs = [ERB(m, self.graph, self.block, self.expand_ratio) for _ in range(self.erbs)]
        self.excitate = Conv(m, n)

    def __call__(self, y: Array, x: Array, *, train: bool) -> Array:
        del x
        normed = self.normed and self.graph != 'deploy'
        h = self.squeeze(*self.bn1(y, train=train, centered=True)) if normed else self.squeeze(y)
        h = leaky_relu(h, SLOPE)
        for erb in self.convs:
            h = erb(h, train=train)
        h = leaky_relu(h, SLOPE)
        h = self.excitate(*self.bn2(h, train=train, centered=True)) if normed else self.excitate(h)
        return self._weigh(y, jax.nn.sigmoid(self.bn3(h, train=train)[0] if normed else h))

    @staticmethod
    def fold(params: Params, statistics: Params, block: str) -> Params:
        folded = {
            name: fold_blocks(child, statistics.get(name, {}), block)
            for name, child in params.items()
            if name.startswith('convs_')
        }
        squeeze, excitate = params['squeeze'], params['excitate']
        if 'bn1' in params:
            bn1, bn2, bn3 = (
                reparam.affine(params[name], statistics[name], BatchNorm.epsilon)
                for name in ('bn1', 'bn2', 'bn3')
            )
            squeeze = reparam.fold_before(squeeze, *bn1)
            excitate = reparam.fold_after(reparam.fold_before(excitate, *bn2), *bn3)
        return folded | {'squeeze': squeeze, 'excitate': excitate}

    @classmethod
    def add_onnx_nodes(cls, graph: OnnxGraph, y: str, x: str, key: str, erbs: int) -> str:
        del x
        h = graph.add('LeakyRelu', graph.conv(y, f'{key}.squeeze'), alpha=SLOPE)
        for i in range(erbs):
            h = graph.conv(h, f'{key}.convs.{i}.conv1.rep_conv')
            h = graph.conv(
                graph.add('LeakyRelu', h, alpha=SLOPE), f'{key}.convs.{i}.conv2.rep_conv'
            )
        h = graph.conv(graph.add('LeakyRelu', h, alpha=SLOPE), f'{key}.excitate')
        return graph.add('Mul', graph.add('Sigmoid', h), y)


@register_attention('hfab_no_bn')
class HFABWithoutBN(HFAB):
    """An HFAB trained without batch norms, in its deploy form (NJU-Jet/FMEN, issue 2)."""

    normed: ClassVar = False
