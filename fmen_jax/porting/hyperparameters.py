"""Hyper-parameters of a network, inferred from the names and shapes in its state dict."""

import re
from collections import Counter
from collections.abc import Mapping

from fmen_jax.errors import InputError
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.layers import Graph
from fmen_jax.models.rfdn import RFDNConfig
from fmen_jax.models.rlfn import RLFNConfig
from fmen_jax.models.zoo import Config

Shapes = Mapping[str, tuple[int, ...]]


def _vote(shapes: Shapes, pattern: str, axis: int = 0) -> int | None:
    """Return the most frequent size of one axis over all matching keys.

    A vote is used so that a single missing or misshapen tensor does not lead to a wrong
    configuration; the error raised later then names that tensor.
    """
    sizes = Counter(
        shape[axis]
        for key, shape in shapes.items()
        if re.fullmatch(pattern, key) and len(shape) > axis
    )
    return sizes.most_common(1)[0][0] if sizes else None


def _count(shapes: Shapes, prefix: str, start: int = 0) -> int:
    """Return how many of prefix0., prefix1., ... exist without a gap, counted from `start`."""
    numbers = {m[1] for key in shapes if (m := re.match(re.escape(prefix) + r'(\d+)\.', key))}
    count = 0
    while str(start + count) in numbers:
        count += 1
    return count


def _ratio(shapes: Shapes, where: str) -> int | None:
    """Return the expand ratio of a train graph: rows / columns of the expand convs at `where`."""
    rows, columns = (_vote(shapes, rf'{where}\.conv\d\.expand_conv\.weight', n) for n in (0, 1))
    return rows // columns if rows and columns else None


def find(shapes: Shapes) -> tuple[Config, Graph]:
    """Return the configuration, including the scale, and the graph of a state dict.

    Keys are in the dialect 'github'.

    Raises:
      InputError: If the keys are not those of a supported network.
    """
    if any(re.match(r'B\d+\.c\d_r\.', key) for key in shapes):
        return _find_rival(shapes), 'deploy'
    return _find_fmen(shapes)


def _find_rival(shapes: Shapes) -> RFDNConfig | RLFNConfig:
    """Return the configuration of an E-RFDN or RLFN; only E-RFDN has distillation (c1_d, ...)."""
    n_feats = _vote(shapes, r'(fea_conv|LR_conv|B\d+\.c5)\.bias')
    n_colors = _vote(shapes, r'fea_conv\.weight', 1) or 3
    scale = _scale(shapes, 'upsampler.0', n_colors)
    if not (n_feats and scale):
        raise _unknown(shapes, 'an E-RFDN or RLFN', 'fea_conv.weight, B1.c1_r.weight, upsampler.0')
    blocks = _count(shapes, 'B', start=1)
    if any(re.match(r'B\d+\.c\d_d\.', key) for key in shapes):
        return RFDNConfig(scale, n_feats, blocks, n_colors)
    default = RLFNConfig()
    return RLFNConfig(
        scale=scale,
        n_feats=n_feats,
        mid_feats=_vote(shapes, r'B\d+\.c[12]_r\.bias') or default.mid_feats,
        attention_feats=_vote(shapes, r'B\d+\.esa\.conv_f\.bias') or default.attention_feats,
        blocks=blocks,
        n_colors=n_colors,
    )


def _scale(shapes: Shapes, conv: str, n_colors: int) -> int | None:
    """Return the scale s of a last convolution with n_colors s^2 rows."""
    squares = {n_colors * s * s: s for s in range(1, 17)}
    rows = [shapes[k][0] for k in (f'{conv}.weight', f'{conv}.bias') if shapes.get(k)]
    return next((squares[count] for count in rows if count in squares), None)


def _unknown(shapes: Shapes, network: str, keys: str) -> InputError:
    names = list(shapes)
    found = ', '.join(names[:4]) + (f', ... ({len(names)} in all)' if len(names) > 4 else '')
    return InputError(
        f'these are not the weights of {network}: expected keys such as {keys} (the last with '
        f'3 s^2 rows); found {found}.'
    )


def _find_fmen(shapes: Shapes) -> tuple[FMENConfig, Graph]:
    """Return the configuration and graph of an FMEN.

    The deploy graph neither shows nor needs the expand ratios, so they are set to their defaults.
    """
    graph: Graph = 'deploy'
    if any('.bn1.' in key or '.expand_conv.' in key for key in shapes):
        graph = 'collapsed'
    n_feats = _vote(shapes, r'(head|lr_conv|warmup\.0|HFABs\.\d+\.excitate)\.bias')
    n_colors = _vote(shapes, r'head\.weight', 1) or 3
    warmup = _vote(shapes, r'warmup\.1\.(squeeze\.bias|bn2\.bias|convs.*\.rep_conv\.bias)')
    mid_feats = _vote(shapes, r'HFABs\.\d+\.(squeeze\.bias|bn2\.bias|convs.*\.rep_conv\.bias)')
    mid_feats = mid_feats or (warmup and warmup + 4)
    scale = _scale(shapes, 'tail.0', n_colors)
    if not (n_feats and mid_feats and scale):
        keys = 'head.weight, warmup.1.squeeze.bias, tail.0.weight'
        raise _unknown(shapes, 'an FMEN, E-RFDN or RLFN', keys)
    blocks = max(_count(shapes, 'ERBs.'), _count(shapes, 'HFABs.'))
    attention = ['warmup.1', *(f'HFABs.{i}' for i in range(blocks))]
    default = FMENConfig()
    config = FMENConfig(
        scale=scale,
        n_feats=n_feats,
        mid_feats=mid_feats,
        down_blocks=blocks,
        up_blocks=tuple(_count(shapes, f'{name}.convs.') for name in attention),
        backbone_expand_ratio=_ratio(shapes, r'ERBs\.\d+') or default.backbone_expand_ratio,
        attention_expand_ratio=_ratio(shapes, r'(warmup\.1|HFABs\.\d+)\.convs\.\d+')
        or default.attention_expand_ratio,
        n_colors=n_colors,
    )
    return config, graph
