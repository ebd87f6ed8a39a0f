"""Read a PyTorch checkpoint without PyTorch, and without running what is in it.

Since 1.6 torch.save writes a zip: NAME/data.pkl, a pickle in which each tensor refers to a storage,
and NAME/data/KEY, the storages' bytes. The unpickler here knows the few names that a state dict
needs and refuses all others, so nothing else can be called.
"""

import collections
import pickle
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import ml_dtypes
import numpy as np

_STORAGES = {
    'DoubleStorage': np.dtype('<f8'),
    'FloatStorage': np.dtype('<f4'),
    'HalfStorage': np.dtype('<f2'),
    'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
    'LongStorage': np.dtype('<i8'),
    'IntStorage': np.dtype('<i4'),
}


class BrokenFileError(Exception):
    """The file is not what torch.save writes."""


class _Unpickler(pickle.Unpickler):
    """Tensors become numpy arrays; any name outside the list is an UnpicklingError."""

    def __init__(self, archive: zipfile.ZipFile, pickled: str) -> None:
        super().__init__(archive.open(pickled))
        self._archive = archive
        self._folder = PurePosixPath(pickled).parent / 'data'
        # Made for this file alone: whatever a pickle might do to them ends with it.
        self._names: dict[tuple[str, str], Any] = {
            ('collections', 'OrderedDict'): collections.OrderedDict,
            ('torch._utils', '_rebuild_tensor_v2'): lambda *args: _rebuild(*args[:4]),
            ('torch._utils', '_rebuild_parameter'): lambda data, *_: data,
        }

    def find_class(self, module: str, name: str) -> Any:
        if module == 'torch' and name in _STORAGES:
            return _STORAGES[name]
        try:
            return self._names[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f'it asks for {module}.{name}') from None

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, dtype, key, _, count = pid
        entry = self._archive.getinfo(str(self._folder / key))
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != count * dtype.itemsize:
            raise BrokenFileError(
                f'storage {key} has {entry.file_size} bytes, not {count} of {dtype}'
            )
        return np.frombuffer(self._archive.read(entry), dtype)


def _rebuild(storage: np.ndarray, offset: int, shape: Any, strides: Any) -> np.ndarray:
    """A tensor as a view of its storage, within its bounds."""
    shape, strides = tuple(shape), tuple(strides)
    if offset < 0 or len(shape) != len(strides) or min((*shape, *strides), default=0) < 0:
        raise BrokenFileError(f'a tensor has offset {offset}, shape {shape}, strides {strides}')
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.size:
        raise BrokenFileError(f'a tensor reaches to element {last} of a storage of {storage.size}')
    steps = [step * storage.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps).copy()


def load(path: Path) -> Any:
    """What torch.save wrote to `path`, with numpy arrays for tensors.

    Raises:
      pickle.UnpicklingError: it holds more than tensors, dicts, lists, numbers and strings.
      BrokenFileError: it is truncated, corrupt, or of the format before PyTorch 1.6.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = [name for name in archive.namelist() if name.endswith('/data.pkl')]
            if len(pickled) != 1:
                raise BrokenFileError(f'it holds {len(pickled)} files data.pkl; expected one')
            order = pickled[0].removesuffix('data.pkl') + 'byteorder'
            if order in archive.namelist() and archive.read(order) != b'little':
                raise BrokenFileError('it was written on a big-endian machine')
            return _Unpickler(archive, pickled[0]).load()
    except zipfile.BadZipFile as error:
        raise BrokenFileError(
            f'{error} (files from before PyTorch 1.6 need torch installed)'
        ) from error
    except (pickle.UnpicklingError, BrokenFileError):
        raise
    except Exception as error:  # a corrupt pickle can fail in any way, none of them ours
        raise BrokenFileError(f'{type(error).__name__}: {error}') from error
