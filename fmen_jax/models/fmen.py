"""FMEN: Fast and Memory-Efficient Network (Du et al., CVPRW 2022, arXiv 2204.08397).

Images are [N, H, W, 3], float, RGB in 0..255 with no mean shift; the output is not clamped.
Submodules have the names used in the published PyTorch checkpoints, so that checkpoints can be
converted by a general rule.
"""

import dataclasses
import re
from reprlib import repr as short
from typing import ClassVar, Literal, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from fmen_jax.errors import InputError
from fmen_jax.images.pixel_shuffle import pixel_shuffle
from fmen_jax.models.layers import (
    BatchNorm,
    Conv,
    Graph,
    Params,
    conv,
    gate,
    leaky_relu,
    pad_border,
)
from fmen_jax.models.protocol import MAX_BLOCKS, NetworkConfig, OnnxGraph, Shapes
from fmen_jax.models.recognition import common_size, count_blocks, scale_of
from fmen_jax.models.reparam import collapse, fold
from fmen_jax.models.tpu_layout import pack, rows_of, tail_of_rows

SLOPE = 0.1
"""Negative slope of the LeakyReLUs."""

Shuffle = Literal['image', 'rows', 'none']
"""Form of the output. 'image' is the image [N, s H, s W, C]. 'rows' has the same values as
[N, s H, s W C], which a TPU does not pad from C to 128 lanes. 'none' is [N, H, W, C s^2], the input
of the pixel shuffle."""


LEAST = {'mid_feats': 5, 'down_blocks': 0, 'up_blocks': 0}
"""Lowest values of the hyper-parameters that are not at least 1."""


def check_blocks(down_blocks: int, up_blocks: tuple[int, ...]) -> None:
    """Check the numbers of blocks of an FMEN or a variant against each other.

    Raises:
      InputError: If `up_blocks` does not have `down_blocks + 1` numbers, or there are more than
        `MAX_BLOCKS` blocks.
    """
    if len(up_blocks) != down_blocks + 1:
        raise InputError(
            f'up_blocks has {len(up_blocks)} numbers, {short(up_blocks)}; expected '
            f'{down_blocks + 1}: one for the warm-up and one for each of the down_blocks.'
        )
    if max(down_blocks, sum(up_blocks)) > MAX_BLOCKS:
        raise InputError(
            f'down_blocks is {down_blocks}, and up_blocks adds up to {sum(up_blocks)}; expected '
            f'{MAX_BLOCKS} blocks or fewer.'
        )


@dataclasses.dataclass(frozen=True)
class FMENConfig(NetworkConfig):
    """Hyper-parameters of an FMEN; the defaults are those of FMEN-S, the network of NTIRE 2022."""

    scale: int = 4
    """Upscaling factor."""
    n_feats: int = 50
    """Number of channels of the backbone."""
    mid_feats: int = 16
    """Number of channels inside the attention blocks; the first one (warm-up) has 4 fewer."""
    down_blocks: int = 4
    """Number of pairs of an ERB and an attention block."""
    up_blocks: tuple[int, ...] = (2, 1, 1, 1, 1)
    """Number of ERBs inside each attention block: that of the warm-up, then one for each pair."""
    backbone_expand_ratio: int = 2
    """Channel expansion factor of the RRRBs in the backbone; the deploy graph has none."""
    attention_expand_ratio: int = 2
    """Channel expansion factor of the RRRBs in attention blocks; the deploy graph has none."""
    n_colors: int = 3
    """Number of channels of the image."""

    key_styles: ClassVar = {
        'github': {},  # NJU-Jet/FMEN
        'ntire2022': {'ERBs': 'basic_blocks', 'HFABs': 'hfabs'},  # ofsoundof/NTIRE2022_ESR
    }
    key_order: ClassVar = (
        *('head', 'warmup', 'ERBs', 'HFABs', 'lr_conv', 'tail'),
        *('bn1', 'bn2', 'bn3', 'squeeze', 'convs', 'excitate'),
        *('conv1', 'conv2', 'expand_conv', 'fea_conv', 'reduce_conv', 'rep_conv'),
    )
    example_keys: ClassVar = 'head.weight, warmup.1.squeeze.bias, tail.0.weight'
    train_only: ClassVar = frozenset({'backbone_expand_ratio', 'attention_expand_ratio'})
    supports_onnx: ClassVar = True
    registers_activations: ClassVar = False  # the published code calls them as functions

    def __post_init__(self) -> None:
        object.__setattr__(self, 'up_blocks', tuple(self.up_blocks))
        self.check_fields(LEAST)
        check_blocks(self.down_blocks, self.up_blocks)

    @property
    def receptive_radius(self) -> int:
        """Receptive radius of an output pixel in LR pixels: the number of successive 3x3 convs.

        The head, warm-up, lr_conv and tail contribute 4, each ERB contributes 2, and each attention
        block contributes 2 plus the contributions of its ERBs.
        """
        attention = sum(2 + 2 * erbs for erbs in self.up_blocks)
        return 4 + 2 * self.down_blocks + attention

    def build(
        self, graph: Graph = 'deploy', *, packed: int = 1, shuffle: Shuffle = 'image'
    ) -> 'FMEN':
        """Return the network as a Flax module: `apply(variables, x) -> y`.

        Args:
          graph: the graph to run, see `Graph`.
          packed: number of adjacent pixels of a row that are packed into the channels, see
            `tpu_layout.pack`: 2 on TPUs.
          shuffle: the form of y, see `Shuffle`.

        Raises:
          InputError: If packed is more than 1 for the 'expanded' graph.
        """
        if packed > 1 and graph == 'expanded':
            raise InputError('the expanded graph is not computed on packed pixels: use collapsed.')
        return FMEN(self, graph, packed, shuffle)

    def build_for_training(self, graph: Graph, packed: int) -> 'FMEN':
        """Return the network without its pixel shuffle, on packed pixels."""
        return self.build(graph, packed=packed, shuffle='none')

    def build_for_tpu(self, width: int) -> 'FMEN':
        """Return the deploy graph with packed pixels if the width is even, and rows as output."""
        return self.build('deploy', packed=2 if width % 2 == 0 else 1, shuffle='rows')

    @classmethod
    def recognize(cls, shapes: Shapes) -> tuple[Self, Graph] | None:
        """Return the configuration and graph of a state dict; None if it is of another network.

        The deploy graph neither shows nor needs the expand ratios, so they are set to their
        defaults.
        """
        train = any('.bn1.' in key or '.expand_conv.' in key for key in shapes)
        n_feats = common_size(shapes, r'(head|lr_conv|warmup\.0|HFABs\.\d+\.excitate)\.bias')
        n_colors = common_size(shapes, r'head\.weight', 1) or cls.n_colors
        inside = r'(squeeze\.bias|bn2\.bias|convs.*\.rep_conv\.bias)'
        warmup = common_size(shapes, rf'warmup\.1\.{inside}')
        mid_feats = common_size(shapes, rf'HFABs\.\d+\.{inside}') or (warmup and warmup + 4)
        scale = scale_of(shapes, 'tail.0', n_colors)
        if not (n_feats and mid_feats and scale):
            return None
        blocks = max(count_blocks(shapes, 'ERBs.'), count_blocks(shapes, 'HFABs.'))
        attention = ['warmup.1', *(f'HFABs.{i}' for i in range(blocks))]
        inner: dict[str, list[str]] = {}
        for key in shapes:
            if match := re.match(r'(warmup\.1|HFABs\.\d+)\.(convs\..*)', key):
                inner.setdefault(match[1], []).append(match[2])
        config = cls(
            scale=scale,
            n_feats=n_feats,
            mid_feats=mid_feats,
            down_blocks=blocks,
            up_blocks=tuple(count_blocks(inner.get(name, ()), 'convs.') for name in attention),
            backbone_expand_ratio=_expand_ratio(shapes, r'ERBs\.\d+') or cls.backbone_expand_ratio,
            attention_expand_ratio=_expand_ratio(shapes, r'(warmup\.1|HFABs\.\d+)\.convs\.\d+')
            or cls.attention_expand_ratio,
            n_colors=n_colors,
        )
        return config, 'collapsed' if train else 'deploy'

    def fold(self, variables: Params) -> Params:
        """Return the deploy variables, see `reparam.fold`."""
        return fold(variables)

    def add_onnx_nodes(self, graph: OnnxGraph) -> None:
        """Add the nodes of the deploy graph, from the input `lr` to the output `sr`."""

        def erb(x: str, key: str) -> str:
            y = graph.add('LeakyRelu', graph.conv(x, f'{key}.conv1.rep_conv'), alpha=SLOPE)
            return graph.conv(y, f'{key}.conv2.rep_conv')

        def hfab(x: str, key: str, blocks: int) -> str:
            y = graph.add('LeakyRelu', graph.conv(x, f'{key}.squeeze'), alpha=SLOPE)
            for i in range(blocks):
                y = erb(y, f'{key}.convs.{i}')
            y = graph.conv(graph.add('LeakyRelu', y, alpha=SLOPE), f'{key}.excitate')
            return graph.add('Mul', graph.add('Sigmoid', y), x)

        x = graph.conv('lr', 'head')
        h = hfab(graph.conv(x, 'warmup.0'), 'warmup.1', self.up_blocks[0])
        for i, blocks in enumerate(self.up_blocks[1:]):
            h = hfab(erb(h, f'ERBs.{i}'), f'HFABs.{i}', blocks)
        h = graph.conv(graph.add('Add', graph.conv(h, 'lr_conv'), x), 'tail.0')
        graph.add('DepthToSpace', h, name='sr', blocksize=self.scale, mode='CRD')


def _expand_ratio(shapes: Shapes, blocks: str) -> int | None:
    """Return outputs / inputs of the expand convolutions of a train graph; None if it has none."""
    wide, narrow = (
        common_size(shapes, rf'{blocks}\.conv\d\.expand_conv\.weight', axis) for axis in (0, 1)
    )
    return wide // narrow if wide and narrow else None


class RRRB(nn.Module):
    """Re-parameterized residual-in-residual block, linear (paper, fig. 3).

        x --+-- expand 1x1 --+-- 3x3 --+-- reduce 1x1 --+-- y
            |                +---------+                |
            +-------------------------------------------+

    The wide map is padded with the bias of the expand conv, which is its output for a zero input.
    """

    features: int
    expand_ratio: int
    graph: Graph
    packed: int = 1

    def setup(self) -> None:
        c, wide = self.features, self.features * self.expand_ratio
        if self.graph == 'deploy':
            self.rep_conv = Conv(c, c, packed=self.packed)
        else:
            self.expand_conv = Conv(c, wide, size=1)
            self.fea_conv = Conv(wide, wide, padding='VALID')
            self.reduce_conv = Conv(wide, c, size=1)

    def __call__(self, x: Array) -> Array:
        if self.graph == 'deploy':
            return self.rep_conv(x)
        if self.graph == 'collapsed':
            names = ('expand_conv', 'fea_conv', 'reduce_conv')
            rrrb = {name: getattr(self, name).weights for name in names}
            dtype = jnp.promote_types(x.dtype, jnp.float32)  # do not fold in bfloat16
            rrrb = jax.tree.map(lambda weight: weight.astype(dtype), rrrb)
            return conv(x, collapse(rrrb), packed=self.packed)
        wide = self.expand_conv(x)
        wide = self.fea_conv(pad_border(wide, self.expand_conv.bias.astype(x.dtype))) + wide
        return self.reduce_conv(wide) + x


class ERB(nn.Module):
    """Enhanced residual block: RRRB, LeakyReLU, RRRB; no skip around it (paper, section 3.1)."""

    features: int
    expand_ratio: int
    graph: Graph
    packed: int = 1

    def setup(self) -> None:
        self.conv1 = RRRB(self.features, self.expand_ratio, self.graph, self.packed)
        self.conv2 = RRRB(self.features, self.expand_ratio, self.graph, self.packed)

    def __call__(self, x: Array) -> Array:
        return self.conv2(leaky_relu(self.conv1(x), SLOPE))


class HFAB(nn.Module):
    """High-frequency attention block (paper, section 3.2).

        x --+-- BN1 - 3x3 n->m - act - ERBs - act - BN2 - 3x3 m->n - BN3 - sigmoid --*-- y
            +------------------------------------------------------------------------+

    The output of a BN before a conv is padded with the value that the BN has for a zero input. Here
    that value is instead subtracted from the whole map, and the response of the conv to it is added
    to the bias of the conv. This is equivalent and allows SAME padding.
    The attention map, [N, H, W, n] in 0..1, is sown as `attention` in `intermediates`.
    """

    features: int
    mid_feats: int
    blocks: int
    expand_ratio: int
    graph: Graph
    packed: int = 1

    def setup(self) -> None:
        n, m = self.features, self.mid_feats
        deploy = self.graph == 'deploy'
        if not deploy:
            self.bn1, self.bn2, self.bn3 = (BatchNorm(c, packed=self.packed) for c in (n, m, n))
        self.squeeze = Conv(n, m, packed=self.packed)
        self.convs = [
            ERB(m, self.expand_ratio, self.graph, self.packed) for _ in range(self.blocks)
        ]
        self.excitate = Conv(m, n, packed=self.packed)

    def __call__(self, x: Array, *, train: bool) -> Array:
        folded = self.graph == 'deploy'
        y = self.squeeze(x) if folded else self.squeeze(*self.bn1(x, train=train, centered=True))
        y = leaky_relu(y, SLOPE)
        for erb in self.convs:
            y = erb(y)
        y = leaky_relu(y, SLOPE)
        y = self.excitate(y) if folded else self.excitate(*self.bn2(y, train=train, centered=True))
        y, attention = gate(y if folded else self.bn3(y, train=train)[0], x)
        self.sow('intermediates', 'attention', attention)
        return y


class FMEN(nn.Module):
    """The FMEN network (paper, fig. 2).

    x - head -+- warm-up conv - HFAB - (ERB - HFAB) * down_blocks - lr_conv -+- tail - shuffle
              +---------------------------------------------------------------+
    """

    config: FMENConfig
    graph: Graph
    packed: int = 1
    shuffle: Shuffle = 'image'

    def setup(self) -> None:
        c, n = self.config, self.config.n_feats
        attention = [
            HFAB(n, mid, erbs, c.attention_expand_ratio, self.graph, self.packed)
            for mid, erbs in zip(
                [c.mid_feats - 4] + [c.mid_feats] * c.down_blocks, c.up_blocks, strict=True
            )
        ]
        self.head = Conv(c.n_colors, n, packed=self.packed)
        self.warmup = [Conv(n, n, packed=self.packed), attention[0]]
        self.ERBs = [
            ERB(n, c.backbone_expand_ratio, self.graph, self.packed) for _ in range(c.down_blocks)
        ]
        self.HFABs = attention[1:]
        self.lr_conv = Conv(n, n, packed=self.packed)
        self.tail = [Conv(n, c.n_colors * c.scale**2, packed=self.packed)]

    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Upscale [N, H, W, n_colors] in 0..255 to [N, scale H, scale W, n_colors], not clamped.

        If `train` is true, the batch norms of the train graph normalize with the statistics of the
        batch and update the running statistics; this requires `mutable=['batch_stats']` in `apply`.
        The deploy graph has no batch norms and ignores `train`. With `shuffle` other than 'image',
        the output has the form given in `Shuffle`.

        Raises:
          InputError: If the number of channels of x is not n_colors.
        """
        n, height, width, colors = x.shape
        if colors != self.config.n_colors:
            raise InputError(
                f'x has {colors} channels; expected {self.config.n_colors} (n_colors).'
            )
        x = self.head(pack(x, self.packed))
        h = self.warmup[1](self.warmup[0](x), train=train)
        for erb, hfab in zip(self.ERBs, self.HFABs, strict=True):
            h = hfab(erb(h), train=train)
        h = self.lr_conv(h) + x
        if self.shuffle == 'rows':
            layout = {'scale': self.config.scale, 'colors': colors, 'pixels': self.packed}
            return rows_of(conv(h, tail_of_rows(self.tail[0].weights, **layout)), **layout)
        y = self.tail[0](h).reshape(n, height, width, -1)
        return pixel_shuffle(y, self.config.scale) if self.shuffle == 'image' else y
