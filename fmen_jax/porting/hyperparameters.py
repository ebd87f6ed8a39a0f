"""A network's hyper-parameters, read off the names and shapes of its state dict."""

import re
from collections import Counter
from collections.abc import Mapping

from fmen_jax.errors import InputError
from fmen_jax.models.fmen import FMENConfig, Graph

Shapes = Mapping[str, tuple[int, ...]]


def _vote(shapes: Shapes, pattern: str, axis: int = 0) -> int | None:
    """The commonest size of one axis over all keys that match.

    A vote, so that a single lost or misshapen tensor is named as itself in the error to come and
    does not turn into a wrong configuration.
    """
    sizes = Counter(
        shape[axis]
        for key, shape in shapes.items()
        if re.fullmatch(pattern, key) and len(shape) > axis
    )
    return sizes.most_common(1)[0][0] if sizes else None


def _count(shapes: Shapes, prefix: str) -> int:
    """How many of prefix0., prefix1., ... there are without a gap."""
    numbers = {m[1] for key in shapes if (m := re.match(re.escape(prefix) + r'(\d+)\.', key))}
    count = 0
    while str(count) in numbers:
        count += 1
    return count


def _ratio(shapes: Shapes, where: str) -> int | None:
    """Rows over columns of the expand convs at `where`: the expand ratio of a train graph."""
    rows, columns = (_vote(shapes, rf'{where}\.conv\d\.expand_conv\.weight', n) for n in (0, 1))
    return rows // columns if rows and columns else None


def find_fmen(shapes: Shapes) -> tuple[FMENConfig, Graph]:
    """Configuration, scale included, and graph of an FMEN state dict in our spelling.

    A deploy graph does not tell its expand ratios, and does not need them: they get the default.

    Raises:
      InputError: these are not the keys of an FMEN.
    """
    graph: Graph = 'deploy'
    if any('.bn1.' in key or '.expand_conv.' in key for key in shapes):
        graph = 'collapsed'
    n_feats = _vote(shapes, r'(head|lr_conv|warmup\.0|HFABs\.\d+\.excitate)\.bias')
    n_colors = _vote(shapes, r'head\.weight', 1) or 3
    warmup = _vote(shapes, r'warmup\.1\.(squeeze\.bias|bn2\.bias|convs.*\.rep_conv\.bias)')
    mid_feats = _vote(shapes, r'HFABs\.\d+\.(squeeze\.bias|bn2\.bias|convs.*\.rep_conv\.bias)')
    mid_feats = mid_feats or (warmup and warmup + 4)
    squares = {n_colors * s * s: s for s in range(1, 17)}
    tail = [shapes[k][0] for k in ('tail.0.weight', 'tail.0.bias') if shapes.get(k)]
    scale = next((squares[rows] for rows in tail if rows in squares), None)
    if not (n_feats and mid_feats and scale):
        raise InputError(
            'these are not the weights of an FMEN: expected keys such as head.weight, '
            f'warmup.1.squeeze.bias and tail.0.weight (3 s^2 rows); found {_some(shapes)}.'
        )
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


def _some(keys: Shapes) -> str:
    names = list(keys)
    return ', '.join(names[:4]) + (f', ... ({len(names)} in all)' if len(names) > 4 else '')
