"""Checkpoint files with tensors only: .pt and .pth (PyTorch) and .safetensors.

Reading a pickle can execute code. `pickled_tensors.py` therefore reads tensors and nothing else,
whether or not PyTorch is installed.
"""

import collections
import importlib.util
import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from fmen_jax.errors import InputError
from fmen_jax.files import check_extension, written_aside
from fmen_jax.porting import pickled_tensors

TORCH_EXTENSIONS = ('.pt', '.pth')
EXTENSIONS = (*TORCH_EXTENSIONS, '.safetensors')


def read(path: Path) -> dict[str, Any]:
    """Return the contents of a checkpoint as NumPy arrays by name, in the stored dtypes.

    The arrays may be nested in wrappers such as 'params_ema'.

    Raises:
      InputError: If the file does not exist, has an unknown extension or is broken, or if a pickle
        contains more than tensors.
    """
    check_extension(path, EXTENSIONS, 'a checkpoint')
    if not path.is_file():
        raise InputError(f'{path}: no such file; expected a checkpoint ({", ".join(EXTENSIONS)}).')
    try:
        with path.open('rb') as file:
            file.read(1)
    except OSError as error:
        raise InputError(f'{path}: cannot be read: {error.strerror}.') from error
    if path.suffix.lower() == '.safetensors':
        return _read_safetensors(path)
    tree = _read_pickled(path)
    if not isinstance(tree, Mapping):
        raise InputError(f'{path}: contains a {type(tree).__name__}; expected tensors by name.')
    return dict(tree)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a .safetensors file that `read` accepts; {} for other formats."""
    if path.suffix.lower() != '.safetensors':
        return {}
    return _safetensors_header(path).get('__metadata__') or {}


def _read_safetensors(path: Path) -> dict[str, Any]:
    import safetensors

    try:
        header = _safetensors_header(path)
        with safetensors.safe_open(path, 'np') as file:
            return {key: file.get_tensor(key) for key in header if key != '__metadata__'}
    except InputError:
        raise
    except (AttributeError, TypeError) as error:  # a dtype that NumPy does not have
        raise InputError(f'{path}: contains a data type that is not supported: {error}') from error
    except Exception as error:  # the file can be broken in many ways
        raise InputError(f'{path}: broken or truncated safetensors file: {error}') from error


def _safetensors_header(path: Path) -> dict[str, Any]:
    """Return the JSON header in the order of the file, which the library does not preserve.

    Duplicate names are refused.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = collections.Counter(name for name, _ in pairs)
        if duplicates := sorted(name for name, count in counts.items() if count > 1):
            raise InputError(
                f'{path}: duplicate names in the file: {", ".join(duplicates)[:200]}; expected '
                'each name once.'
            )
        return dict(pairs)

    with path.open('rb') as file:
        size = int.from_bytes(file.read(8), 'little')
        if 8 + size > path.stat().st_size:
            raise ValueError(f'its header has {size} bytes, which is more than the file')
        header = json.loads(file.read(size), object_pairs_hook=unique)
    if not isinstance(header, dict):
        raise ValueError(f'its header is a {type(header).__name__}; expected an object')
    return header


def _read_pickled(path: Path) -> Any:
    try:
        return pickled_tensors.load(path)
    except pickle.UnpicklingError as error:
        raise _unsafe(path, str(error)) from error
    except pickled_tensors.BrokenFileError as error:
        raise InputError(f'{path}: broken or truncated PyTorch checkpoint: {error}') from error


def _unsafe(path: Path, detail: str) -> InputError:
    return InputError(
        f'{path}: refused, because reading it could run code: {detail}\nExpected tensors only. If '
        'you trust the file, load it in PyTorch and save its state dict alone.'
    )


def write(path: Path, state: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a state dict in its order, in the format given by the file extension.

    `metadata` is written to .safetensors files only.

    Raises:
      InputError: If the extension is unknown, or it is that of PyTorch and torch is not installed.
    """
    check_extension(path, EXTENSIONS, 'a checkpoint')
    if path.suffix.lower() == '.safetensors':
        blob = _safetensors_bytes(state, metadata)
        with written_aside(path) as aside:
            aside.write_bytes(blob)
        return
    if not importlib.util.find_spec('torch'):
        raise InputError(
            f'{path}: writing {path.suffix} needs PyTorch, which is not installed: write '
            '.safetensors, or pip install "fmen_jax[torch]".'
        )
    import torch

    def to_torch(array: np.ndarray) -> Any:
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
        return torch.from_numpy(array.copy())

    blob = io.BytesIO()  # torch.save's own errors on a full disk do not say so
    torch.save({key: to_torch(array) for key, array in state.items()}, blob)
    with written_aside(path) as aside:
        aside.write_bytes(blob.getbuffer())


def _safetensors_bytes(state: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file whose header is deterministic and preserves the order of `state`.

    The library by itself sorts the tensors and writes the metadata in a random order.
    """
    import safetensors.numpy

    blob = safetensors.numpy.save(dict(state))
    end = 8 + int.from_bytes(blob[:8], 'little')
    header = json.loads(blob[8:end])
    notes = {'format': 'pt', **metadata}
    ordered = {'__metadata__': notes, **{key: header[key] for key in state}}
    text = json.dumps(ordered, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    return len(text).to_bytes(8, 'little') + text + blob[end:]
