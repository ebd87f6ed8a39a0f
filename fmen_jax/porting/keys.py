"""Conversion between PyTorch key names and Flax variable paths: a rule and its inverse.

    HFABs.0.convs.1.conv1.rep_conv.weight  <->  params/HFABs_0/convs_1/conv1/rep_conv/kernel
    HFABs.0.bn1.running_mean               <->  batch_stats/HFABs_0/bn1/mean

Kernels are OIHW in PyTorch and HWIO in Flax.

A number is joined to the name before it, and the last component determines the leaf. A dialect
renames only the first component.
"""

import re

import numpy as np

Path = tuple[str, ...]

# First components of keys in each public repository, where they differ from our names.
DIALECTS: dict[str, dict[str, str]] = {
    'github': {},  # NJU-Jet/FMEN
    'ntire2022': {'ERBs': 'basic_blocks', 'HFABs': 'hfabs'},  # ofsoundof/NTIRE2022_ESR
}

# (collection, leaf) by the last component of a key. The weight of a batch norm is a scale instead.
_LEAVES = {
    'weight': ('params', 'kernel'),
    'bias': ('params', 'bias'),
    'running_mean': ('batch_stats', 'mean'),
    'running_var': ('batch_stats', 'var'),
    'num_batches_tracked': ('batch_stats', 'num_batches_tracked'),
}
_KEYS = {leaf: key for key, (_, leaf) in _LEAVES.items()} | {'scale': 'weight'}

# Order of definition in the published code, which is the order of its state dicts.
_ORDER: tuple[str, ...] = (
    *('head', 'warmup', 'ERBs', 'HFABs', 'lr_conv', 'tail'),
    *('bn1', 'bn2', 'bn3', 'squeeze', 'convs', 'excitate'),
    *('expand_conv', 'fea_conv', 'reduce_conv', 'rep_conv'),
    *('B', 'c1_d', 'c1_r', 'c2_d', 'c2_r', 'c3_d', 'c3_r', 'c4', 'c5', 'esa'),
    *('conv1', 'conv_f', 'conv_max', 'conv2', 'conv3', 'conv3_', 'conv4'),
    *('c', 'LR_conv', 'upsampler'),
    *('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked'),
)


def to_path(key: str) -> Path | None:
    """Return the variable path of a key in the dialect 'github', collection first.

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
    """Return the key of a variable path in the dialect 'github'; None if no key has this path."""
    _, *parents, leaf = path
    parts = [re.sub(r'_(\d+)$', r'.\1', part) for part in parents]
    key = '.'.join([*parts, _KEYS.get(leaf, '')])
    return key if to_path(key) == path else None


def position(key: str) -> tuple[int, ...]:
    """Return a sort key that gives the order of published state dicts (dialect 'github')."""
    parts = re.sub(r'^B(\d+)', r'B.\1', key).split('.')  # blocks of E-RFDN and RLFN
    return tuple(int(part) if part.isdigit() else _ORDER.index(part) for part in parts)


def rename(key: str, names: dict[str, str]) -> str:
    """Replace the first component of a key according to `names`."""
    first, dot, rest = key.partition('.')
    return names.get(first, first) + dot + rest


def to_flax_layout(array: np.ndarray) -> np.ndarray:
    """Transpose OIHW to HWIO; return arrays that are not 4-D unchanged."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def to_torch_layout(array: np.ndarray) -> np.ndarray:
    """Transpose HWIO to OIHW; return arrays that are not 4-D unchanged."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
