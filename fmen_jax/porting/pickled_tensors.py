"""Read a PyTorch checkpoint without PyTorch, and without running what is in it.

Since 1.6 torch.save writes a zip: NAME/data.pkl, a pickle in which each tensor refers to a storage,
and NAME/data/KEY, the storages' bytes. Before, it wrote pickles one after the other: a magic
number, a version, facts about the machine, the object, and the keys of its storages, whose bytes
follow in that order, each after a count of elements. The unpickler here knows the few names that a
state dict needs and refuses all others, so nothing else can be called.
"""

import collections
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any

import ml_dtypes
import numpy as np

_STORAGES = {
    'DoubleStorage': np.dtype('<f8'),
    'FloatStorage': np.dtype('<f4'),
    'HalfStorage': np.dtype('<f2'),
    'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
    'LongStorage': np.dtype('<i8'),
    'IntStorage': np.dtype('<i4'),
    'ShortStorage': np.dtype('<i2'),
    'CharStorage': np.dtype('i1'),
    'ByteStorage': np.dtype('u1'),
    'BoolStorage': np.dtype('?'),
}


class BrokenFileError(Exception):
    """The file is not what torch.save writes."""


class _Unpickler(pickle.Unpickler):
    """Tensors become numpy arrays; any name outside the list is an UnpicklingError."""

    def __init__(
        self, file: IO[bytes], storage: Callable[[str, np.dtype, int], np.ndarray]
    ) -> None:
        """`storage` gives the elements of a key, of a dtype, whose count is declared."""
        super().__init__(file)
        self._storage = storage
        # Made for this file alone: whatever a pickle might do to them ends with it.
        self._names: dict[tuple[str, str], Any] = {
            ('collections', 'OrderedDict'): collections.OrderedDict,
            ('torch', 'Size'): tuple,
            ('torch._utils', '_rebuild_tensor'): lambda *args: _rebuild(*args[:4]),
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
        kind, dtype, key, _, count, *view = pid
        if kind != 'storage' or not isinstance(dtype, np.dtype) or any(view):
            raise BrokenFileError(f'it refers to {kind!r} {key!r} in a way that is not handled')
        return self._storage(key, dtype, count)


def _rebuild(storage: np.ndarray, offset: int, shape: Any, strides: Any) -> np.ndarray:
    """A tensor as a view of its storage, within its bounds."""
    shape, strides = tuple(shape), tuple(strides)
    if offset < 0 or len(shape) != len(strides) or min((*shape, *strides), default=0) < 0:
        raise BrokenFileError(f'a tensor has offset {offset}, shape {shape}, strides {strides}')
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.size:
        raise BrokenFileError(f'a tensor reaches to element {last} of a storage of {storage.size}')
    steps = [step * storage.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


def load(path: Path) -> Any:
    """What torch.save wrote to `path`, with numpy arrays for tensors.

    Raises:
      pickle.UnpicklingError: it holds more than tensors, dicts, lists, numbers and strings.
      BrokenFileError: it is truncated or corrupt.
    """
    try:
        with path.open('rb') as file:
            return _load_zip(path) if zipfile.is_zipfile(file) else _load_legacy(path)
    except (pickle.UnpicklingError, BrokenFileError):
        raise
    except Exception as error:  # a corrupt pickle can fail in any way, none of them ours
        raise BrokenFileError(f'{type(error).__name__}: {error}') from error


def _load_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        pickled = [name for name in archive.namelist() if name.endswith('/data.pkl')]
        if len(pickled) != 1:
            raise BrokenFileError(f'it holds {len(pickled)} files data.pkl; expected one')
        if (entry := archive.getinfo(pickled[0])).file_size > path.stat().st_size:
            raise BrokenFileError(f'{entry.filename} unpacks to {entry.file_size} bytes')
        order = pickled[0].removesuffix('data.pkl') + 'byteorder'
        if order in archive.namelist() and archive.read(order) != b'little':
            raise BrokenFileError('it was written on a big-endian machine')
        folder = PurePosixPath(pickled[0]).parent / 'data'

        def storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
            entry = archive.getinfo(str(folder / key))
            if entry.compress_type != zipfile.ZIP_STORED or (
                entry.file_size != count * dtype.itemsize
            ):
                raise BrokenFileError(
                    f'storage {key} has {entry.file_size} bytes, not {count} of {dtype}'
                )
            return np.frombuffer(archive.read(entry), dtype)

        return _Unpickler(archive.open(pickled[0]), storage).load()


_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def _load_legacy(path: Path) -> Any:
    """The format before PyTorch 1.6, read twice: for the storages, then with them."""
    size = path.stat().st_size
    declared: dict[str, np.dtype] = {}
    stored: dict[str, np.ndarray] = {}

    def declare(key: str, dtype: np.dtype, count: int) -> np.ndarray:
        if not 0 <= count * dtype.itemsize <= size:
            raise BrokenFileError(f'storage {key} of {count} {dtype} is larger than the file')
        declared[key] = dtype
        return np.broadcast_to(np.zeros((), dtype), (count,))  # of no memory

    def storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
        if stored[key].size != count or stored[key].dtype != dtype:
            raise BrokenFileError(f'storage {key} has {stored[key].size} elements, not {count}')
        return stored[key]

    def plain() -> Any:
        return _Unpickler(file, declare).load()

    with path.open('rb') as file:
        try:
            magic = plain()
        except Exception as error:
            raise BrokenFileError('neither a zip nor the format before PyTorch 1.6') from error
        if magic != _LEGACY_MAGIC:
            raise BrokenFileError('neither a zip nor the format before PyTorch 1.6')
        version, facts = plain(), plain()
        if version != 1001 or not facts.get('little_endian'):
            raise BrokenFileError(f'its format is {version} of {facts}, which is not handled')
        start = file.tell()
        plain()
        for key in plain():
            count = int.from_bytes(file.read(8), 'little')
            nbytes = count * declared[key].itemsize
            if nbytes > size - file.tell():
                raise BrokenFileError(f'storage {key} ends after the file does')
            stored[key] = np.frombuffer(file.read(nbytes), declared[key])
        file.seek(start)
        return _Unpickler(file, storage).load()
