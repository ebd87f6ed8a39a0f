"""FMEN with other blocks: a network for ablations.

    x - head -+- warm-up - attention - (block - attention) * n - lr_conv -+- tail - shuffle
              +------------------------------------------------------------+

Here n is `down_blocks`. The linear blocks, the backbone block and the attention are chosen by
name. Images are [N, H, W, 3], float, RGB in 0..255 with no mean shift; the output is not clamped.

With backbone ERB and attention hfab, the deploy graph is that of an FMEN, and the variables have
its names. A checkpoint of any other combination does not show what it is of, so checkpoints of
variants store the configuration in the metadata of the safetensors file.
"""

import dataclasses
from typing import ClassVar, Literal, Self

import flax.linen as nn
import numpy as np
from jax import Array

from fmen_jax.errors import InputError
from fmen_jax.images.pixel_shuffle import pixel_shuffle
from fmen_jax.models.attention import (
    ERB,
    RB,
    SLOPE,
    Attention,
    attention_class,
    fold_blocks,
)
from fmen_jax.models.fmen import LEAST, FMENConfig, check_blocks
from fmen_jax.models.layers import Conv, Graph, Params
from fmen_jax.models.linear_blocks import block_class, has_norms
from fmen_jax.models.protocol import NetworkConfig, OnnxGraph, Shapes


@dataclasses.dataclass(frozen=True)
class VariantConfig(NetworkConfig):
    """Hyper-parameters of a variant; the defaults are those of FMEN-S."""

    scale: int = 4
    """Upscaling factor."""
    backbone: Literal['ERB', 'RB'] = 'ERB'
    """Backbone block: ERB is X, LeakyReLU, X; RB is X, ReLU, X, plus its input."""
    block: str = 'rrrb'
    """Linear block X of the backbone and of the HFABs (`linear_blocks.BLOCKS`)."""
    expand_ratio: int = 2
    """Width of the linear blocks in the train graph; the deploy graph does not depend on it."""
    attention: str = 'hfab'
    """Attention after each backbone block and after the warm-up (`attention.ATTENTION`)."""
    n_feats: int = 50
    """Number of channels of the backbone."""
    mid_feats: int = 16
    """Number of channels inside the HFABs; the first one (warm-up) has 4 fewer. Other kinds of
    attention ignore it."""
    down_blocks: int = 4
    """Number of pairs of a backbone block and an attention block."""
    up_blocks: tuple[int, ...] = (2, 1, 1, 1, 1)
    """Number of ERBs inside each HFAB: that of the warm-up, then one for each pair. Other kinds of
    attention ignore it."""
    n_colors: int = 3
    """Number of channels of the image."""

    key_order: ClassVar = (
        *('head', 'warmup', 'ERBs', 'RBs', 'HFABs', 'attentions', 'lr_conv', 'tail'),
        *FMENConfig.key_order[6:],
    )
    train_only: ClassVar = frozenset({'expand_ratio', 'block'})
    supports_onnx: ClassVar = True
    registers_activations: ClassVar = False
    in_metadata: ClassVar = True

    def __post_init__(self) -> None:
        object.__setattr__(self, 'up_blocks', tuple(self.up_blocks))
        self.check_fields(LEAST)
        if self.backbone not in ('ERB', 'RB'):
            raise InputError(f'backbone is {self.backbone!r}; expected ERB or RB.')
        check_blocks(self.down_blocks, self.up_blocks)

    @property
    def min_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Minimum height and width of an image in pixels, which depends on the attention."""
        return attention_class(self.attention).min_size

    @property
    def receptive_radius(self) -> int | None:
        """Receptive radius of an output pixel in LR pixels; None if it sees the whole image."""
        attention = attention_class(self.attention)
        if attention.is_global:
            return None
        return 4 + 2 * self.down_blocks + sum(map(attention.radius, self.up_blocks))

    @property
    def freezes_statistics(self) -> bool:
        """Whether the 'collapsed' graph trains with the running statistics of the linear blocks."""
        return has_norms(block_class(self.block))

    def build(self, graph: Graph = 'deploy', *, shuffle: bool = True) -> 'Variant':
        """Return the network as a Flax module: `apply(variables, x) -> y`.

        Args:
          graph: the graph to run, see `Graph`.
          shuffle: whether the output is the image, or else the input of the pixel shuffle.

        Raises:
          InputError: If the attention or, for a train graph, the linear block is not registered.
        """
        attention_class(self.attention)
        if graph != 'deploy':
            block_class(self.block)
        return Variant(self, graph, shuffle)

    def build_for_training(self, graph: Graph, packed: int) -> 'Variant':
        """Return the network without its pixel shuffle; it does not pack pixels."""
        del packed
        return self.build(graph, shuffle=False)

    @classmethod
    def recognize(cls, shapes: Shapes) -> tuple[Self, Graph] | None:
        """Return None: keys and shapes do not show which variant a checkpoint is of."""
        del shapes
        return None

    @property
    def attentions(self) -> str:
        """Name of the list of attention blocks."""
        return 'HFABs' if self.attention in ('hfab', 'hfab_no_bn') else 'attentions'

    def initialize(self, params: Params, generator: np.random.Generator) -> Params:
        """Return the parameters of a train graph, with linear blocks as `LinearBlock.initial`."""
        initial = block_class(self.block).initial

        def pair(blocks: Params) -> Params:
            return {name: initial(blocks[name], generator) for name in blocks}

        found = dict(params)
        for name, child in params.items():
            if name.startswith(f'{self.backbone}s_'):
                found[name] = pair(child)
            elif name == 'warmup_1' or name.startswith(f'{self.attentions}_'):
                found[name] = {
                    k: pair(v) if k.startswith('convs_') else v for k, v in child.items()
                }
        return found

    def fold(self, variables: Params) -> Params:
        """Return the deploy variables, given the variables of the train graph.

        Raises:
          InputError: If the linear block is not registered.
        """
        params, statistics = variables['params'], variables.get('batch_stats', {})
        attention = attention_class(self.attention)
        folded = dict(params)
        for name, child in params.items():
            stats = statistics.get(name, {})
            if name.startswith(f'{self.backbone}s_'):
                folded[name] = fold_blocks(child, stats, self.block)
            elif name == 'warmup_1' or name.startswith(f'{self.attentions}_'):
                folded[name] = attention.fold(child, stats, self.block)
        return {'params': folded}

    def add_onnx_nodes(self, graph: OnnxGraph) -> None:
        """Add the nodes of the deploy graph, from the input `lr` to the output `sr`.

        Raises:
          InputError: If the attention has no ONNX nodes.
        """
        attention = attention_class(self.attention)
        activation = {'ERB': ('LeakyRelu', {'alpha': SLOPE}), 'RB': ('Relu', {})}[self.backbone]

        def block(x: str, key: str) -> str:
            y = graph.add(activation[0], graph.conv(x, f'{key}.conv1.rep_conv'), **activation[1])
            y = graph.conv(y, f'{key}.conv2.rep_conv')
            return graph.add('Add', y, x) if self.backbone == 'RB' else y

        x = graph.conv('lr', 'head')
        y = graph.conv(x, 'warmup.0')
        h = attention.add_onnx_nodes(graph, y, x, 'warmup.1', self.up_blocks[0])
        for i, erbs in enumerate(self.up_blocks[1:]):
            y = block(h, f'{self.backbone}s.{i}')
            h = attention.add_onnx_nodes(graph, y, h, f'{self.attentions}.{i}', erbs)
        h = graph.conv(graph.add('Add', graph.conv(h, 'lr_conv'), x), 'tail.0')
        graph.add('DepthToSpace', h, name='sr', blocksize=self.scale, mode='CRD')


class Variant(nn.Module):
    """The network of a `VariantConfig`."""

    config: VariantConfig
    graph: Graph
    shuffle: bool = True

    def setup(self) -> None:
        c, n = self.config, self.config.n_feats
        blocks = {'ERB': ERB, 'RB': RB}[c.backbone]

        def attention(mid_feats: int, erbs: int) -> Attention:
            return attention_class(c.attention)(
                n, self.graph, mid_feats, erbs, c.block, c.expand_ratio
            )

        self.head = Conv(c.n_colors, n)
        self.warmup = [Conv(n, n), attention(c.mid_feats - 4, c.up_blocks[0])]
        backbone = [blocks(n, self.graph, c.block, c.expand_ratio) for _ in range(c.down_blocks)]
        setattr(self, f'{c.backbone}s', backbone)
        attentions = [attention(c.mid_feats, erbs) for erbs in c.up_blocks[1:]]
        setattr(self, c.attentions, attentions)
        self.lr_conv = Conv(n, n)
        self.tail = [Conv(n, c.n_colors * c.scale**2)]

    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Upscale [N, H, W, n_colors] in 0..255 to [N, scale H, scale W, n_colors], not clamped.

        If `train` is true, batch norms normalize with the statistics of the batch and update the
        running statistics, which requires `mutable=['batch_stats']` in `apply`. Those inside
        collapsed linear blocks keep their running statistics.

        Raises:
          InputError: If the number of channels of x is not n_colors, or it is too small.
        """
        c = self.config
        if x.shape[3] != c.n_colors:
            raise InputError(f'x has {x.shape[3]} colors; expected {c.n_colors}, as n_colors.')
        x = self.head(x)
        h = self.warmup[1](self.warmup[0](x), x, train=train)
        backbone = getattr(self, f'{c.backbone}s')
        attentions = getattr(self, c.attentions)
        for block, attention in zip(backbone, attentions, strict=True):
            h = attention(block(h, train=train), h, train=train)
        y = self.tail[0](self.lr_conv(h) + x)
        return pixel_shuffle(y, c.scale) if self.shuffle else y
