"""Reading PyTorch checkpoints without PyTorch and without executing code that they contain.

Since PyTorch 1.6, torch.save writes a zip file with NAME/data.pkl, a pickle in which each tensor
refers to a storage, and NAME/data/KEY, the bytes of each storage. Older versions wrote a sequence
of pickles: a magic number, a version, information about the machine, the object, and the keys of
its storages. The bytes of the storages follow in the order of the keys, each after its number of
elements.

A pickle is a program, which can call functions and ask for any amount of memory. The unpickler in
this module accepts the few names that a state dict needs and refuses all others, so nothing else
can be called. Before anything is allocated, every declared size is compared with the size of the
file.
"""

import collections
import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from reprlib import repr as short
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

# The names stand for the types in a pickle. They are strings because a pickle can change the state
# of most other objects, even that of a NumPy dtype, which is shared by the whole process.
_STORAGES = {
    'torch.DoubleStorage': np.dtype('<f8'),
    'torch.FloatStorage': np.dtype('<f4'),
    'torch.HalfStorage': np.dtype('<f2'),
    'torch.BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
    'torch.LongStorage': np.dtype('<i8'),
    'torch.IntStorage': np.dtype('<i4'),
    'torch.ShortStorage': np.dtype('<i2'),
    'torch.CharStorage': np.dtype('i1'),
    'torch.ByteStorage': np.dtype('u1'),
    'torch.BoolStorage': np.dtype('?'),
}

# Tensors can share a storage, or repeat its elements, so that they are larger than the file when
# they are copied. This is the largest permitted ratio: averaged weights that share the storages of
# the others need 2.
_MAX_EXPANSION = 16

_MAX_TUPLES = 40_000  # torch.save writes four for each tensor


class BrokenFileError(Exception):
    """Raised if a file does not have the format that torch.save writes."""


class _Storage(NamedTuple):
    """The elements of a storage: a class of its own, so that no other object passes for one."""

    elements: np.ndarray


class _StateDict(collections.OrderedDict):
    """A dict to which a pickle cannot add attributes that hide its methods."""

    def __setstate__(self, state: Any) -> None:
        del state  # torch.save stores the versions of the modules here


class _Unpickler(pickle.Unpickler):
    """Unpickles tensors as NumPy arrays; raises UnpicklingError for names outside its list."""

    def __init__(
        self, file: IO[bytes], storage: Callable[[str, np.dtype, int], np.ndarray], file_size: int
    ) -> None:
        """Initialize with `storage`, a function (key, dtype, number of elements) -> elements."""
        super().__init__(file)
        self._storage = storage
        self._bytes_left = _MAX_EXPANSION * file_size
        # Created for each file, so that changes that a pickle makes to these objects end with it.
        self._names: dict[tuple[str, str], Any] = {
            ('collections', 'OrderedDict'): lambda *pairs: self._ordered_dict(*pairs),
            ('torch', 'Size'): lambda sizes: self._size(sizes),
            ('torch._utils', '_rebuild_tensor'): lambda *args: self._tensor(*args[:4]),
            ('torch._utils', '_rebuild_tensor_v2'): lambda *args: self._tensor(*args[:4]),
            ('torch._utils', '_rebuild_parameter'): lambda data, *_: data,
        }

    def find_class(self, module: str, name: str) -> Any:
        if f'{module}.{name}' in _STORAGES:
            return f'{module}.{name}'
        try:
            return self._names[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f'it asks for {module}.{name}') from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, name, key, _, count, *view = pid
        dtype = _STORAGES.get(name)
        if kind != 'storage' or dtype is None or not isinstance(key, str) or any(view):
            raise BrokenFileError(f'it refers to {short(pid)}, which is not supported')
        return _Storage(self._storage(key, dtype, count))

    def _tensor(self, storage: Any, offset: int, shape: Any, strides: Any) -> np.ndarray:
        if not isinstance(storage, _Storage):
            raise BrokenFileError(f'a tensor has the storage {short(storage)}')
        self._spend(math.prod(shape) * storage.elements.itemsize)
        return _rebuild(storage.elements, offset, shape, strides)

    def _ordered_dict(self, *pairs: Any) -> dict[Any, Any]:
        items = dict(*pairs)
        self._spend(100 * len(items))
        return _StateDict(items)

    def _size(self, sizes: Any) -> tuple[int, ...]:
        if len(sizes) > 64:
            raise BrokenFileError(f'a shape has {len(sizes)} dimensions; expected 64 or less')
        return tuple(sizes)

    def _spend(self, count: int) -> None:
        """Count bytes that the contents of the file occupy, of which there is a maximum."""
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise BrokenFileError(
                f'its contents are more than {_MAX_EXPANSION} times as large as the file'
            )


def _rebuild(storage: np.ndarray, offset: int, shape: Any, strides: Any) -> np.ndarray:
    """Return a tensor as a view of its storage, after checking the bounds.

    The storage is one-dimensional; its stride is 0 if it stands for one that is not read yet.
    """
    shape, strides = tuple(shape), tuple(strides)
    if offset < 0 or len(shape) != len(strides) or min((*shape, *strides), default=0) < 0:
        raise BrokenFileError(
            f'a tensor has offset {offset}, shape {short(shape)}, strides {short(strides)}'
        )
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.size:
        raise BrokenFileError(f'a tensor reaches to element {last} of a storage of {storage.size}')
    steps = [step * storage.strides[0] for step in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


def load(path: Path) -> Any:
    """Return the object that torch.save wrote to `path`, with NumPy arrays for tensors.

    Raises:
      pickle.UnpicklingError: If the file contains more than tensors, dicts, lists, numbers and
        strings.
      BrokenFileError: If the file is truncated or corrupt.
    """
    try:
        # From memory, a reader returns less than a broken file declares, without allocating it.
        data = path.read_bytes()
        is_zip = zipfile.is_zipfile(io.BytesIO(data))
        return _load_zip(data) if is_zip else _load_legacy(data)
    except BrokenFileError:
        raise
    except pickle.UnpicklingError as error:
        if str(error).startswith('it asks for'):
            raise
        raise BrokenFileError(str(error)[:200]) from error
    except Exception as error:  # a corrupt pickle can raise any exception, not only ours
        raise BrokenFileError(f'{type(error).__name__}: {str(error)[:200]}') from error


def _unpickle(
    file: io.BytesIO, storage: Callable[[str, np.dtype, int], np.ndarray], file_size: int
) -> Any:
    """Read one pickle, after checking the sizes that it declares."""
    start = file.tell()
    tuples = 0
    # This reads the whole pickle without executing it, and fails if a declared length is too large.
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        # Python ends in a segmentation fault when it hashes tuples that are nested too deeply.
        if (tuples := tuples + opcode.name.startswith('TUPLE')) > _MAX_TUPLES:
            raise BrokenFileError(
                f'it holds more than {_MAX_TUPLES} tuples, those of {_MAX_TUPLES // 4} tensors; a '
                '.safetensors file can hold more'
            )
        # The unpickler allocates a table of as many entries as the largest number of an object.
        if opcode.name in ('PUT', 'BINPUT', 'LONG_BINPUT') and int(argument or 0) > count:
            raise BrokenFileError(f'object number {argument} follows {count} operations')
    file.seek(start)
    return _Unpickler(file, storage, file_size).load()


def _load_zip(data: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > len(data):
            raise BrokenFileError('it unpacks to more bytes than it has')
        pickled = [name for name in archive.namelist() if name.endswith('/data.pkl')]
        if len(pickled) != 1:
            raise BrokenFileError(f'it holds {len(pickled)} files data.pkl; expected one')
        order = pickled[0].removesuffix('data.pkl') + 'byteorder'
        if order in archive.namelist() and archive.read(order) != b'little':
            raise BrokenFileError('it was written on a big-endian machine')
        folder = PurePosixPath(pickled[0]).parent / 'data'
        loaded: dict[str, bytes] = {}

        def storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
            entry = archive.getinfo(str(folder / key))
            if entry.file_size != count * dtype.itemsize:
                raise BrokenFileError(
                    f'storage {short(key)} has {entry.file_size} bytes, not {count} of {dtype}'
                )
            if key not in loaded:
                loaded[key] = archive.read(entry)
            return np.frombuffer(loaded[key], dtype)

        return _unpickle(io.BytesIO(archive.read(pickled[0])), storage, len(data))


_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def _load_legacy(data: bytes) -> Any:
    """Read the format before PyTorch 1.6.

    The object is read twice: first to find the declared storages, and then with their contents.
    """
    file = io.BytesIO(data)
    declared: dict[str, np.dtype] = {}
    stored: dict[str, np.ndarray] = {}

    def declare(key: str, dtype: np.dtype, count: int) -> np.ndarray:
        if not 0 <= count * dtype.itemsize <= len(data):
            raise BrokenFileError(f'storage {short(key)} is larger than the file')
        declared[key] = dtype
        return np.broadcast_to(np.zeros((), dtype), (count,))  # uses no memory

    def storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
        if stored[key].size != count or stored[key].dtype != dtype:
            raise BrokenFileError(
                f'storage {short(key)} has {stored[key].size} elements, not {count}'
            )
        return stored[key]

    def next_object() -> Any:
        return _unpickle(file, declare, len(data))

    try:
        magic = next_object()
    except Exception as error:
        raise BrokenFileError('neither a zip nor the format before PyTorch 1.6') from error
    if magic != _LEGACY_MAGIC:
        raise BrokenFileError('neither a zip nor the format before PyTorch 1.6')
    version, machine = next_object(), next_object()
    if version != 1001 or not machine.get('little_endian'):
        raise BrokenFileError(
            f'its format is {short(version)} of {short(machine)}, which is not supported'
        )
    start = file.tell()
    next_object()
    for key in next_object():
        count = int.from_bytes(file.read(8), 'little')
        contents = file.read(count * declared[key].itemsize)
        if len(contents) != count * declared[key].itemsize:
            raise BrokenFileError(f'storage {short(key)} ends after the file does')
        stored[key] = np.frombuffer(contents, declared[key])
    file.seek(start)
    return _unpickle(file, storage, len(data))
