"""What a reference computed, as the probe wrote it: arrays by name.

The probe writes maps as [N, C, H, W] under the module names of the reference; `Dump` returns them
as [N, H, W, C] under the key names of the default style.

    meta                          JSON: format, versions, precision, keys that do not fit, notes
    state/KEY                     state dict after loading
    input/CASE                    input
    eval/DTYPE/CASE/out           output; layers/MODULE/in and layers/MODULE/out: input and output
    train/x, train/y              batches [steps, N, C, H, W] and targets
    train/DTYPE/...               out, loss, grad/KEY, stats/KEY of the first step
    train/DTYPE/steps/...         loss of every step, state/KEY after the last
    picture/NAME, upscaled/NAME   8-bit pictures before and after
    original/NAME                 8-bit picture that was shrunk to picture/NAME
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fmen_jax.errors import InputError
from fmen_jax.models import zoo
from fmen_jax.models.protocol import NetworkConfig
from fmen_jax.porting import keys

FORMAT = 1
"""Version of the format; the probe has the same number."""

MAX_BYTES = 2**34
"""Largest total size of the unpacked arrays of a file in bytes. A small compressed file can unpack
to more than the memory holds. The probe writes some megabytes for its own inputs."""

_MAP = 'N, C, H, W'
_PICTURE = '1, C, H, W'
_TYPE = 'float(?:64|32)'

# Regular expression of names; their dimensions, if the number is fixed; other arrays they need.
_RULES: tuple[tuple[str, str | None, tuple[str, ...]], ...] = (
    ('state/.+', None, ()),
    ('input/[^/]+', _MAP, ()),
    (rf'(eval/{_TYPE}/([^/]+))/(?:out|layers/.+/(?:in|out))', _MAP, (r'\1/out', r'input/\2')),
    ('train/[xy]', f'steps, {_MAP}', ('train/x', 'train/y')),
    (rf'(train/{_TYPE})/out', _MAP, (r'\1/loss', 'train/x')),
    (rf'(train/{_TYPE})/loss', '', (r'\1/out',)),
    (rf'(train/{_TYPE})/(?:grad|stats)/.+', None, (r'\1/out',)),
    (rf'train/{_TYPE}/steps/loss', 'steps', ('train/x',)),
    (rf'(train/{_TYPE}/steps)/state/.+', None, (r'\1/loss',)),
    ('picture/(.+)', _PICTURE, (r'upscaled/\1',)),
    ('(?:upscaled|original)/(.+)', _PICTURE, (r'picture/\1',)),
)


@dataclasses.dataclass(frozen=True)
class Maps:
    """Inputs and outputs of layers by name, [N, H, W, C]; the name of the whole network is ''."""

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def renamed_modules() -> dict[str, str]:
    """Return the names of modules that other key styles rename, with their names there."""
    styles = [style for network in zoo.CLASSES for style in network.key_styles.values()]
    return {ours: theirs for style in styles for ours, theirs in style.items()}


def spelled(name: str) -> str:
    """Return a key or module name in the default key style of its network."""
    return keys.rename(name, {theirs: ours for ours, theirs in renamed_modules().items()})


def to_nhwc(array: np.ndarray) -> np.ndarray:
    """Return [..., C, H, W] as [..., H, W, C]."""
    return np.moveaxis(array, -3, -1)


class Dump:
    """Arrays of a reference, read from an .npz file without pickles, or given."""

    def __init__(self, source: str | Path | Mapping[str, np.ndarray]) -> None:
        """Read a dump, and check its format, names and shapes.

        Raises:
          InputError: If the file does not exist or is not an .npz file of plain arrays, or if these
            are not those of a dump.
        """
        is_file = isinstance(source, str | Path)
        try:
            self.arrays = _read(source) if is_file else _arrays(source)
            # what the probe recorded about the reference; empty if it is not known
            self.meta = _meta(self.arrays)
            _check(self.arrays)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f'{source if is_file else "these arrays"}: not a dump of a reference ({error}); '
                'expected the .npz file that the script of --write-probe of this version writes.'
            ) from error

    def check_network(self, config: NetworkConfig) -> None:
        """Raise InputError unless all pictures have the channels and the scale of a network."""
        colors, scale = config.n_colors, config.scale
        for name, array in self.arrays.items():
            kind, _, rest = name.partition('/')
            if name != 'train/x' and kind not in ('input', 'picture'):
                continue
            *lead, _, h, w = array.shape
            expected = {name: [*lead, colors, h, w]}
            larger = {'train': ['train/y'], 'picture': [f'upscaled/{rest}', f'original/{rest}']}
            for other in larger.get(kind, []):
                expected[other] = [*lead, colors, scale * h, scale * w]
            for key, shape in expected.items():
                if key in self.arrays and list(self.arrays[key].shape) != shape:
                    raise InputError(
                        f'{key} of the dump is {list(self.arrays[key].shape)}; expected {shape} '
                        f'for a network of {colors} channels that upscales by {scale}. The dump '
                        'was made for another one: give the checkpoint with which its probe was '
                        'written.'
                    )

    def below(self, prefix: str) -> dict[str, np.ndarray]:
        """Return the arrays whose names start with `prefix`, without it, as they are stored."""
        return {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}

    def by_key(self, prefix: str) -> dict[str, np.ndarray]:
        """Return the tensors by key (default style) below a prefix, in PyTorch's layout."""
        return {spelled(key): value for key, value in self.below(prefix).items()}

    def image(self, name: str, dtype: Any = np.float64) -> np.ndarray:
        """Return an array as [..., H, W, C]."""
        return to_nhwc(self.arrays[name]).astype(dtype)

    @property
    def cases(self) -> list[str]:
        """Names of the inputs."""
        return list(self.below('input/'))

    def maps(self, dtype: str, case: str) -> Maps | None:
        """Return what the layers of the reference computed in one dtype, if it was recorded."""
        found = self.below(f'eval/{dtype}/{case}/')
        if 'out' not in found:
            return None
        maps = Maps({'': self.image(f'input/{case}')}, {'': to_nhwc(found.pop('out'))})
        for key, value in found.items():
            name, _, end = key.removeprefix('layers/').rpartition('/')
            (maps.inputs if end == 'in' else maps.outputs)[spelled(name)] = to_nhwc(value)
        return maps


def _read(path: str | Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file; raise ValueError if it cannot be read."""
    try:
        with Path(path).open('rb') as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                raise ValueError('a single array')
            size = sum(entry.file_size for entry in found.zip.infolist())
            if size > MAX_BYTES:
                raise ValueError(
                    f'its arrays take {size} bytes, more than {MAX_BYTES}; record fewer or smaller '
                    'inputs'
                )
            return _arrays(found)
    except Exception as error:  # of zipfile, zlib and tokenize, which parses the headers
        raise ValueError(str(error) or type(error).__name__) from error


def _arrays(found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {key: np.asarray(value) for key, value in found.items()}


def _meta(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return what the probe recorded; raise ValueError if it is not of this version."""
    if 'meta' not in arrays:
        return {}
    try:
        meta = json.loads(str(arrays['meta']))
    except json.JSONDecodeError as error:
        raise ValueError(f'meta is not JSON: {error}') from error
    if not isinstance(meta, dict) or meta.get('format') != FORMAT:
        found = meta.get('format') if isinstance(meta, dict) else meta
        raise ValueError(f'its format is {str(found)[:40]}, not {FORMAT}')
    _check_kinds(meta, {'faults': dict, 'notes': list})
    faults = meta.get('faults', {})
    _check_kinds(faults, {'missing': list, 'misshapen': dict})
    for key, shapes in faults.get('misshapen', {}).items():
        if not (isinstance(shapes, list) and len(shapes) == 2):
            raise ValueError(f'misshapen of meta is not a dict of pairs: {key} is {shapes}')
    return meta


def _check_kinds(tree: dict[str, Any], kinds: dict[str, type]) -> None:
    for name, kind in kinds.items():
        if not isinstance(tree.get(name, kind()), kind):
            raise ValueError(f'{name} of meta is not a {kind.__name__}')


def _rule(name: str) -> tuple[re.Match[str], str | None, tuple[str, ...]]:
    """Return what is known of an array of this name."""
    for pattern, dimensions, needed in _RULES:
        if match := re.fullmatch(pattern, name, re.DOTALL):
            return match, dimensions, needed
    raise ValueError(f'no dump has an array {name!r}')


def _check(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError if there are arrays that no dump has, or others are missing."""
    for name, array in arrays.items():
        if name == 'meta':
            continue
        match, dimensions, needed = _rule(name)
        if array.dtype.kind not in 'biuf':
            raise ValueError(f'{name} is of dtype {array.dtype}, not of numbers')
        if name.startswith(('picture/', 'upscaled/', 'original/')) and array.dtype != np.uint8:
            raise ValueError(f'{name} is of dtype {array.dtype}, not uint8')
        if not array.size:
            raise ValueError(f'{name} has the shape {list(array.shape)}, without any values')
        if dimensions is not None:
            count = len(dimensions.split(', ')) if dimensions else 0
            lead = array.shape[:1] if dimensions.startswith('1,') else (1,)
            if array.ndim != count or lead != (1,):
                raise ValueError(f'{name} has the shape {list(array.shape)}, not [{dimensions}]')
        for other in map(match.expand, needed):
            if other not in arrays:
                raise ValueError(f'{name} is there, but {other} is not')
        wide = arrays.get(re.sub('^eval/float32/', 'eval/float64/', name), array)
        if array.shape != wide.shape:
            raise ValueError(
                f'{name} has the shape {list(array.shape)} in float32, but {list(wide.shape)} in '
                'float64'
            )
    for name in (f'train/{dtype}/steps/loss' for dtype in ('float64', 'float32')):
        if name in arrays and len(arrays[name]) > len(arrays['train/x']):
            raise ValueError(f'{name} has more steps than train/x')
