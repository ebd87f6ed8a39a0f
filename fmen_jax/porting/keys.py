"""PyTorch key names <-> Flax variable paths: a rule and its inverse.

    HFABs.0.convs.1.conv1.rep_conv.weight  <->  params/HFABs_0/convs_1/conv1/rep_conv/kernel
    HFABs.0.bn1.running_mean               <->  batch_stats/HFABs_0/bn1/mean

Kernels are OIHW there and HWIO here.

A number joins the name before it; the last component tells the leaf. A dialect renames the first
component only.
"""

import re

import numpy as np

Path = tuple[str, ...]

# The top level of a key as each public repository spells it, where it differs from ours.
DIALECTS: dict[str, dict[str, str]] = {
    'github': {},  # NJU-Jet/FMEN
    'ntire2022': {'ERBs': 'basic_blocks', 'HFABs': 'hfabs'},  # ofsoundof/NTIRE2022_ESR
}

# (collection, leaf) of a variable by the last component of a key; a batch norm's weight is a scale.
_LEAVES = {
    'weight': ('params', 'kernel'),
    'bias': ('params', 'bias'),
    'running_mean': ('batch_stats', 'mean'),
    'running_var': ('batch_stats', 'var'),
    'num_batches_tracked': ('batch_stats', 'num_batches_tracked'),
}
_KEYS = {leaf: key for key, (_, leaf) in _LEAVES.items()} | {'scale': 'weight'}

# The order of definition in the published code, which is the order of its state dicts.
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
    """The path of a key in our spelling, collection first; None if its last name is unknown."""
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
    """The key of a variable's path, in our spelling; None if no key has this path."""
    _, *parents, leaf = path
    parts = [re.sub(r'_(\d+)$', r'.\1', part) for part in parents]
    key = '.'.join([*parts, _KEYS.get(leaf, '')])
    return key if to_path(key) == path else None


def position(key: str) -> tuple[int, ...]:
    """Where a key in our spelling stands in a published state dict: a sort key."""
    parts = re.sub(r'^B(\d+)', r'B.\1', key).split('.')  # the rivals' blocks are B1, B2, ...
    return tuple(int(part) if part.isdigit() else _ORDER.index(part) for part in parts)


def rename(key: str, names: dict[str, str]) -> str:
    """Replace the first component of a key."""
    first, dot, rest = key.partition('.')
    return names.get(first, first) + dot + rest


def to_flax_layout(array: np.ndarray) -> np.ndarray:
    """OIHW -> HWIO; anything else as it is."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def to_torch_layout(array: np.ndarray) -> np.ndarray:
    """HWIO -> OIHW; anything else as it is."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
