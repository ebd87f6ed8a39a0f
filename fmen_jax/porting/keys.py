"""Conversion between PyTorch key names and Flax variable paths: a rule and its inverse.

    HFABs.0.convs.1.conv1.rep_conv.weight  <->  params/HFABs_0/convs_1/conv1/rep_conv/kernel
    HFABs.0.bn1.running_mean               <->  batch_stats/HFABs_0/bn1/mean

Kernels are OIHW in PyTorch and HWIO in Flax.

A number is joined to the name before it, and the last component determines the leaf. Batch norms
are named bn1, bn2, ... Naming schemes (`NetworkConfig.key_styles`) rename only the first component.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

Path = tuple[str, ...]

# (collection, leaf) by the last component of a key. The weight of a batch norm is a scale instead.
_LEAVES = {
    'weight': ('params', 'kernel'),
    'bias': ('params', 'bias'),
    'running_mean': ('batch_stats', 'mean'),
    'running_var': ('batch_stats', 'var'),
    'num_batches_tracked': ('batch_stats', 'num_batches_tracked'),
}
_KEYS = {leaf: key for key, (_, leaf) in _LEAVES.items()} | {'scale': 'weight'}


def to_path(key: str) -> Path | None:
    """Return the variable path of a key in the default style, collection first.

    The result is None if the last component of the key is unknown.
    """
    *parents, last = key.split('.')
    if last not in _LEAVES:
        return None
    collection, leaf = _LEAVES[last]
    if last == 'weight' and parents and re.fullmatch(r'bn\d', parents[-1]):
        leaf = 'scale'
    joined: list[str] = []
    for part in parents:
        if part.isdigit() and joined:
            joined[-1] += f'_{part}'
        else:
            joined.append(part)
    return (collection, *joined, leaf)


def to_key(path: Path) -> str | None:
    """Return the key of a variable path in the default style; None if no key has this path."""
    _, *parents, leaf = path
    parts = [re.sub(r'_(\d+)$', r'.\1', part) for part in parents]
    key = '.'.join([*parts, _KEYS.get(leaf, '')])
    return key if to_path(key) == path else None


def position(key: str, order: Sequence[str]) -> tuple[tuple[int, str, int], ...]:
    """Return a sort key that gives the order of published state dicts.

    Args:
      key: key in the default style.
      order: names of submodules in the order of their definition, `NetworkConfig.key_order`; the
        name of numbered modules such as B1, B2, ... is listed as B. Unlisted names come last.
    """
    ranks = {name: i for i, name in enumerate([*order, *_LEAVES])}

    def rank(part: str) -> tuple[int, str, int]:
        name = part if part in ranks else part.rstrip('0123456789')
        number = part.removeprefix(name)
        return ranks.get(name, len(ranks)), name, int(number or -1)

    return tuple(rank(part) for part in key.split('.'))


def rename(key: str, names: Mapping[str, str]) -> str:
    """Replace the first component of a key according to `names`."""
    first, dot, rest = key.partition('.')
    return names.get(first, first) + dot + rest


def to_flax_layout(array: np.ndarray) -> np.ndarray:
    """Transpose OIHW to HWIO; return arrays that are not 4-D unchanged."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def to_torch_layout(array: np.ndarray) -> np.ndarray:
    """Transpose HWIO to OIHW; return arrays that are not 4-D unchanged."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
