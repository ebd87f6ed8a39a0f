"""Reading PyTorch checkpoints without PyTorch and without executing code that they contain.

Since PyTorch 1.6, torch.save writes a zip file with NAME/data.pkl, a pickle in which each tensor
refers to a storage, and NAME/data/KEY, the bytes of each storage. Older versions wrote a sequence
of pickles: a magic number, a version, information about the machine, the object, and the keys of
its storages. The bytes of the storages follow in the order of the keys, each after its number of
elements. The unpickler in this module accepts the few names that a state dict needs and refuses all
others, so nothing else can be called.
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
    """Raised if a file does not have the format that torch.save writes."""


class _Unpickler(pickle.Unpickler):
    """Unpickles tensors as NumPy arrays; raises UnpicklingError for names outside its list."""

    def __init__(
        self, file: IO[bytes], storage: Callable[[str, np.dtype, int], np.ndarray]
    ) -> None:
        """Initialise with `storage`, a function (key, dtype, number of elements) -> elements."""
        super().__init__(file)
        self._storage = storage
        # Created for each file, so that changes that a pickle makes to these objects end with it.
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
    """Return a tensor as a view of its storage, after checking the bounds."""
    shape, strides = tuple(shape), tuple(strides)
    if offset < 0 or len(shape) != len(strides) or min((*shape, *strides), default=0) < 0:
        raise BrokenFileError(f'a tensor has offset {offset}, shape {shape}, strides {strides}')
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.size:
        raise BrokenFileError(f'a tensor reaches to element {last} of a storage of {storage.size}')
    steps = [step * storage.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


def load(path: Path) -> Any:
    """Return the object that torch.save wrote to `path`, with NumPy arrays for tensors.

    Raises:
      pickle.UnpicklingError: If the file contains more than tensors, dicts, lists, numbers and
        strings.
      BrokenFileError: If the file is truncated or corrupt.
    """
    try:
        with path.open('rb') as file:
            return _load_zip(path) if zipfile.is_zipfile(file) else _load_legacy(path)
    except (pickle.UnpicklingError, BrokenFileError):
        raise
    except Exception as error:  # a corrupt pickle can raise any exception, not only ours
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
    """Read the format before PyTorch 1.6.

    The object is read twice: first to find the declared storages, and then with their contents.
    """
    size = path.stat().st_size
    declared: dict[str, np.dtype] = {}
    stored: dict[str, np.ndarray] = {}

    def declare(key: str, dtype: np.dtype, count: int) -> np.ndarray:
        if not 0 <= count * dtype.itemsize <= size:
            raise BrokenFileError(f'storage {key} of {count} {dtype} is larger than the file')
        declared[key] = dtype
        return np.broadcast_to(np.zeros((), dtype), (count,))  # uses no memory

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
