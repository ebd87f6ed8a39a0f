"""Mutated checkpoints: .pt and .pth of both formats of PyTorch, and .safetensors.

The originals are small networks, in files made here without PyTorch, and the published checkpoints
of the shared folder where it exists. A mutation changes the bytes of a file, the structure of its
zip archive, the opcodes of its pickle, its header, or its tensors.
"""

import dataclasses
import functools
import io
import itertools
import json
import os
import pickle
import pickletools
import random
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fmen_jax
from fmen_jax import porting
from fmen_jax.errors import InputError
from fmen_jax.models import zoo
from fmen_jax.models.initial import initial_variables
from fmen_jax.models.variant import VariantConfig
from tests.fuzz.outcome import Case, Outcome
from tests.helpers import ROOT, Golden

SHARED = Path(os.environ.get('FMEN_JAX_SHARED') or ROOT.parent / 'shared')
PUBLISHED = ('fmen_s_x4_github.pt', 'fmen_s_x4_ntire2022.pth', 'e_rfdn_x4.pth')

VARIANT = 'variant.safetensors'
"""The original whose configuration is stored in its metadata."""

EXECUTED = Path(tempfile.gettempdir()) / 'fmen_jax_fuzz_executed'
"""Folder that malicious pickles would create."""

_BOUNDARIES = (0, 1, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)

_NO_CHECKSUM = 'the format has no checksum, and the file is valid'
_VALID = 'the mutated file is a valid checkpoint with other contents'

Tree = Mapping[Any, Any]


# --- Writing the formats, without PyTorch -------------------------------------------------------


def pickled(tree: Tree) -> tuple[bytes, list[bytes]]:
    """Return a tree of tensors as torch.save pickles it, and the contents of its storages."""
    storages: list[bytes] = []

    def plain(value: Any) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    def operations(value: Any) -> bytes:
        if isinstance(value, Mapping):
            items = [operations(k) + operations(v) for k, v in value.items()]
            return b'}(' + b''.join(items) + b'u'
        if not isinstance(value, np.ndarray):
            return plain(value)
        kinds = {
            'f4': 'Float',
            'f8': 'Double',
            'f2': 'Half',
            'i8': 'Long',
            'i4': 'Int',
            'i2': 'Short',
            'i1': 'Char',
            'u1': 'Byte',
            'b1': 'Bool',
        }
        kind = kinds[value.dtype.str[1:]]
        key = str(len(storages))
        storages.append(value.tobytes())
        strides = tuple(step // value.itemsize for step in np.empty_like(value, order='C').strides)
        storage = b'(' + plain('storage') + f'ctorch\n{kind}Storage\n'.encode()
        storage += plain(key) + plain('cpu') + plain(value.size)
        storage += b'tQ'
        view = plain(0) + plain(value.shape) + plain(strides)
        hooks = b'\x89ccollections\nOrderedDict\n)R'
        return b'ctorch._utils\n_rebuild_tensor_v2\n(' + storage + view + hooks + b'tR'

    return b'\x80\x02' + operations(tree) + b'.', storages


def zip_file(members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return file.getvalue()


def zip_members(code: bytes, storages: list[bytes]) -> dict[str, bytes]:
    data = {f'archive/data/{key}': content for key, content in enumerate(storages)}
    members = {'archive/data.pkl': code, 'archive/byteorder': b'little'}
    return {**members, **data, 'archive/version': b'3\n'}


def legacy_file(code: bytes, storages: list[bytes], size: int = 4) -> bytes:
    """Return a file in the format before PyTorch 1.6, for tensors of `size` bytes an element."""
    code = code.replace(b'tQ', b'NtQ')  # a view, which is None
    start = [0x1950A86A20F9469CFC6C, 1001, {'little_endian': True, 'type_sizes': {'int': 4}}]
    parts = [pickle.dumps(value, 2) for value in start]
    parts += [code, pickle.dumps([str(key) for key in range(len(storages))], 2)]
    parts += [struct.pack('<q', len(content) // size) + content for content in storages]
    return b''.join(parts)


def safetensors_file(header: Any, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + body


def safetensors_parts(
    state: Tree, metadata: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], bytes]:
    names = {'f4': 'F32', 'f8': 'F64', 'f2': 'F16', 'i8': 'I64', 'i4': 'I32', 'i2': 'I16'}
    names |= {'i1': 'I8', 'u1': 'U8', 'b1': 'BOOL'}
    header: dict[str, Any] = {'__metadata__': {'format': 'pt', **(metadata or {})}}
    body = b''
    for key, array in state.items():
        start = len(body)
        body += array.tobytes()
        header[str(key)] = {
            'dtype': names[array.dtype.str[1:]],
            'shape': list(array.shape),
            'data_offsets': [start, len(body)],
        }
    return header, body


# --- Originals ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Original:
    """A valid checkpoint."""

    suffix: str
    data: bytes
    state: Tree | None
    """Tensors of the small network; None for published checkpoints."""

    @property
    def metadata(self) -> dict[str, str]:
        end = 8 + int.from_bytes(self.data[:8], 'little')
        return json.loads(self.data[8:end])['__metadata__']

    @property
    def is_zip(self) -> bool:
        return self.data.startswith(b'PK')


@functools.cache
def originals() -> dict[str, Original]:
    golden = Golden(ROOT / 'tests/golden/tiny_x2.npz')
    found: dict[str, Original] = {}
    for graph in ('train', 'deploy'):
        state = {k: v for k, v in golden.below(f'{graph}/').items() if k != 'y'}
        # 32 bits each, so that the format before PyTorch 1.6 needs one size of elements
        state = {k: v.astype(f'{v.dtype.kind}4') for k, v in state.items()}
        code, storages = pickled(state)
        found[f'{graph}.pt'] = Original('.pt', zip_file(zip_members(code, storages)), state)
        found[f'{graph}_1.5.pth'] = Original('.pth', legacy_file(code, storages), state)
        parts = safetensors_parts(state)
        found[f'{graph}.safetensors'] = Original('.safetensors', safetensors_file(*parts), state)
    config = VariantConfig(scale=2, n_feats=6, mid_feats=6, down_blocks=1, up_blocks=(0, 1))
    state = porting.to_state_dict(initial_variables(config, 'deploy'), config, 'deploy')
    parts = safetensors_parts(state, {'config': zoo.to_json(config, 'deploy')})
    found[VARIANT] = Original('.safetensors', safetensors_file(*parts), state)
    for name in PUBLISHED:
        if (path := SHARED / 'official' / name).exists():
            found[name] = Original(path.suffix, path.read_bytes(), None)
    return found


# --- Mutations ----------------------------------------------------------------------------------


def mutate_bytes(draw: random.Random, original: Original) -> bytes:
    data = bytearray(original.data)
    # Half of the mutations are in the first or last kilobytes, where the structure is.
    near = draw.choice([len(data), 4096])
    place = draw.randrange(min(near, len(data)))
    place = draw.choice([place, len(data) - 1 - place])
    length = draw.choice([1, 2, 8, 100, 5000])
    how = draw.randrange(7)
    if how == 0:
        for _ in range(draw.choice([1, 1, 3, 20])):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif how == 1:
        data[place : place + length] = draw.randbytes(length)
    elif how == 2:
        del data[place:]
    elif how == 3:
        del data[place : place + length]
    elif how == 4:
        data[place:place] = data[place : place + length]
    elif how == 5:
        size = draw.choice([1, 2, 4, 8])
        value = draw.choice(_BOUNDARIES) % 256**size
        data[place : place + size] = value.to_bytes(size, 'little')
    else:
        data += draw.randbytes(length)
    return bytes(data)


def mutate_zip(draw: random.Random, original: Original) -> bytes:
    """Change the members of an archive, or the sizes and offsets that its directory declares."""
    if draw.random() < 0.4:
        return _mutate_zip_directory(draw, original.data)
    with zipfile.ZipFile(io.BytesIO(original.data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice(list(members))
    how = draw.randrange(8)
    if how == 0:
        del members[name]
    elif how == 1:
        members[draw.choice(['../x', name.upper(), f'{name}0', f'a/{name}'])] = members.pop(name)
    elif how == 2:
        members[name] = members[name][: draw.randrange(len(members[name]) + 1)]
    elif how == 3:
        members[name] += draw.randbytes(draw.choice([1, 4, 1000]))
    elif how == 4:
        return zip_file(members, zipfile.ZIP_DEFLATED)
    elif how == 5:
        members[f'b/{draw.choice(["data.pkl", "byteorder"])}'] = members[name]
    elif how == 6:  # a member that unpacks to a thousand times its size
        return zip_file({**members, name: bytes(draw.choice([10**6, 10**8]))}, zipfile.ZIP_DEFLATED)
    else:
        other = draw.choice(list(members))
        members[name], members[other] = members[other], members[name]
    return zip_file(members)


def _mutate_zip_directory(draw: random.Random, data: bytes) -> bytes:
    signature = draw.choice([b'PK\x01\x02', b'PK\x03\x04', b'PK\x05\x06'])
    places = [i for i in range(len(data)) if data.startswith(signature, i)]
    changed = bytearray(data)
    # all fields are in the 46 bytes after the signature
    place = draw.choice(places) + draw.randrange(4, 46) if places else 0
    size = draw.choice([1, 2, 4])
    changed[place : place + size] = (draw.choice(_BOUNDARIES) % 256**size).to_bytes(size, 'little')
    return bytes(changed[: len(data)])


def mutate_pickle(draw: random.Random, original: Original) -> bytes:
    """Change the opcodes of the pickle, and put it back with a valid checksum."""
    if original.is_zip:
        with zipfile.ZipFile(io.BytesIO(original.data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        (name,) = [name for name in members if name.endswith('data.pkl')]
        return zip_file({**members, name: _mutate_operations(draw, members[name])})
    file = io.BytesIO(original.data)
    ends = []
    for _ in range(5):
        for _ in pickletools.genops(file):
            pass
        ends.append(file.tell())
    start, end = draw.choice(
        [(ends[2], ends[3]), (ends[2], ends[3]), (ends[3], ends[4]), (0, ends[2])]
    )
    code = _mutate_operations(draw, original.data[start:end])
    return original.data[:start] + code + original.data[end:]


def _mutate_operations(draw: random.Random, code: bytes) -> bytes:
    places = [place for _, _, place in pickletools.genops(code)] + [len(code)]
    operations = [code[a:b] for a, b in itertools.pairwise(places)]
    place = draw.randrange(len(operations))
    how = draw.randrange(9)
    if how == 0:
        del operations[place]
    elif how == 1:
        operations.insert(place, operations[place])
    elif how == 2:
        other = draw.randrange(len(operations))
        operations[place], operations[other] = operations[other], operations[place]
    elif how == 3:
        opcode = draw.choice(pickletools.opcodes).code.encode('latin-1')
        operations[place] = opcode + operations[place][1:]
    elif how == 4:
        operations.insert(place, _number(draw.choice(_BOUNDARIES)))
    elif how == 5:
        numbers = [i for i, o in enumerate(operations) if o[:1] in (b'K', b'M', b'J')]
        if numbers:
            operations[draw.choice(numbers)] = _number(draw.choice(_BOUNDARIES))
    elif how == 6:
        operations.insert(place, draw.choice(_HOSTILE))
    elif how == 7:
        operations.insert(place, draw.choice(_EXECUTING))
    else:
        globals_ = [i for i, o in enumerate(operations) if o[:1] == b'c']
        if globals_:
            operations[draw.choice(globals_)] = draw.choice(
                [b'cos\nmkdir\n', b'cbuiltins\neval\n', b'ctorch\nload\n', b'ctorch\nIntStorage\n']
            )
    return b''.join(operations)


def _number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


_EXECUTING = (
    b'cos\nmkdir\n' + pickle.dumps((str(EXECUTED),), 2)[2:-1] + b'R0',
    b'cposix\nmkdir\n' + pickle.dumps((str(EXECUTED),), 2)[2:-1] + b'R0',
    b'(' + pickle.dumps(str(EXECUTED), 2)[2:-1] + b'ios\nmkdir\n0',
)
_HOSTILE = (
    b'r\xff\xff\xff\x0f',  # LONG_BINPUT of a large number
    b'p99999999\n',
    b'X\xff\xff\xff\x7f',  # BINUNICODE of 2 GiB
    b'\x8e' + struct.pack('<Q', 2**40),  # BINBYTES8
    b'\x96' + struct.pack('<Q', 2**33),  # BYTEARRAY8
    b'\x95' + struct.pack('<Q', 2**62),  # FRAME
    b'\x8b\xff\xff\xff\x7f',  # LONG4
    b'ctorch\nBFloat16Storage\n(K\x03U\x01<NNNK\x10K\x10K\0tb0',  # BUILD on a type
    b'(' * 10_000,
    b']' + b'\x85' * 5000 + b'0',  # deep nesting
)


def mutate_header(draw: random.Random, original: Original) -> bytes:
    """Change the JSON header of a safetensors file, or its declared length."""
    end = 8 + int.from_bytes(original.data[:8], 'little')
    header, body = json.loads(original.data[8:end]), original.data[end:]
    key = draw.choice([key for key in header if key != '__metadata__'])
    boundary = draw.choice([*_BOUNDARIES, -1, 0.5, 10**30])
    how = draw.randrange(9)
    if how == 0:
        size = draw.choice([draw.choice(_BOUNDARIES), end - 8 + draw.choice([-1, 1, -8, 8])])
        return struct.pack('<Q', size % 2**64) + original.data[8:]
    if how == 1:
        field = draw.choice(['dtype', 'shape', 'data_offsets'])
        header[key][field] = draw.choice([None, 'F32', [], {}, boundary, [boundary], [1, [2]]])
    elif how == 2:
        header[key]['dtype'] = draw.choice(
            ['F16', 'BF16', 'F64', 'F8_E4M3', 'C64', 'X', 'I8', 'F4']
        )
    elif how == 3:
        shape = header[key]['shape'] or [1]
        shape[draw.randrange(len(shape))] = boundary
        header[key]['shape'] = shape
    elif how == 4:
        header[key]['data_offsets'][draw.randrange(2)] = draw.choice([boundary, 4, len(body)])
    elif how == 5:
        del header[key][draw.choice(list(header[key]))]
    elif how == 6:
        header = draw.choice([None, [], 3, 'x', {}, {'a': header}, [header]])
    elif how == 7:
        text = json.dumps(header).encode()
        extra = draw.choice(
            [b'[' * 100_000, b'{"a":' * 10_000, b'9' * 100_000, b'\xff\xfe', b'NaN', text]
        )
        return safetensors_file(text[:-1] + b',"x":' + extra + b'}', body)
    else:
        header['__metadata__'] = draw.choice([None, 3, {'a': 1}, {'a': None}, [], header[key]])
    return safetensors_file(header, body)


def mutate_metadata(draw: random.Random, original: Original) -> bytes:
    """Change the configuration that is stored in the metadata."""
    end = 8 + int.from_bytes(original.data[:8], 'little')
    header, body = json.loads(original.data[8:end]), original.data[end:]
    config = json.loads(header['__metadata__']['config'])
    key = draw.choice(list(config))
    values = [None, True, -1, 0, 7, 4.0, 10**8, 10**30, '', 'hfab', 'ca', [], [10**8, 1], [2.0, 1]]
    how = draw.randrange(4)
    if how == 0:
        del config[key]
    elif how == 1:
        config[draw.choice(['extra', 'Scale'])] = draw.choice(values)
    elif how == 2:
        config[key] = draw.choice(values)
    text = json.dumps(config)
    if how == 3:
        text = draw.choice(['', '{}', '[' * 100_000, 'x.yml', f'[{text}]', text[:-1], 'NaN'])
    header['__metadata__']['config'] = text
    return safetensors_file(header, body)


def mutate_tensors(draw: random.Random, original: Original) -> bytes:
    """Change keys, shapes, dtypes and values, and write a valid file of the same format."""
    tree: Any = dict(original.state or {})
    safe = original.suffix == '.safetensors'
    legacy = original.suffix == '.pth'
    key = draw.choice(list(tree))
    array = tree[key]
    how = draw.randrange(10)
    if how == 0:
        del tree[key]
    elif how == 1:
        new = draw.choice(['', 'x', key.upper(), f'{key}.weight', f'module.{key}', 'é' * 1000, '.'])
        tree[new] = tree.pop(key)
    elif how == 2:
        tree = {draw.choice(['module.', 'model.', 'x.']) + k: v for k, v in tree.items()}
    elif how == 3 and not safe:
        tree = {draw.choice(['params', 'params_ema', 'state_dict', 'weights']): tree}
    elif how == 4:
        shapes = [(), (0,), (-1,), (array.size, 1), (1, *array.shape), array.shape[::-1]]
        shape = draw.choice(shapes)
        tree[key] = np.resize(array, shape) if -1 not in shape else array.reshape(-1)
    elif how == 5 and not legacy:
        tree[key] = array.astype(draw.choice(['f2', 'f8', 'i8', 'i4', 'i2', 'u1', '?']))
    elif how == 6:
        changed = array.astype(np.float32).reshape(-1)
        changed[draw.randrange(changed.size)] = draw.choice([np.nan, np.inf, -np.inf, 1e38, 0])
        tree[key] = changed.reshape(array.shape)
    elif how == 7 and not safe:
        tree[draw.choice([key, 0, None, (1, 2)])] = draw.choice([None, 3, 'x', [], {}, (1,)])
    elif how == 8:
        other = draw.choice(list(tree))
        tree[key], tree[other] = tree[other], tree[key]
    else:
        tree[draw.choice(['extra', 'head.weight2', 'ERBs.9.conv1.rep_conv.weight'])] = array
    if safe:
        return safetensors_file(*safetensors_parts(tree, original.metadata))
    code, storages = pickled(tree)
    return legacy_file(code, storages) if legacy else zip_file(zip_members(code, storages))


@dataclasses.dataclass(frozen=True)
class Mutation:
    apply: Callable[[random.Random, Original], bytes]
    applies_to: Callable[[Original], bool]
    undetectable: Callable[[Original], str]
    """Why a checkpoint that is read, but not as the original one, cannot be detected; '' if it
    could be."""


def _is_safe(original: Original) -> bool:
    return original.suffix == '.safetensors'


MUTATIONS = {
    'bytes': Mutation(
        mutate_bytes,
        lambda original: True,
        # The archive has a checksum of each member.
        lambda original: '' if original.is_zip else _NO_CHECKSUM,
    ),
    'zip': Mutation(mutate_zip, lambda original: original.is_zip, lambda original: _VALID),
    'pickle': Mutation(mutate_pickle, lambda original: not _is_safe(original), lambda _: _VALID),
    'header': Mutation(mutate_header, _is_safe, lambda original: _VALID),
    'metadata': Mutation(
        mutate_metadata,
        lambda original: _is_safe(original) and 'config' in original.metadata,
        lambda original: _VALID,
    ),
    'tensors': Mutation(
        mutate_tensors, lambda original: original.state is not None, lambda original: _VALID
    ),
}


# --- The interface of tests.fuzz ----------------------------------------------------------------


def cases(seed: int, count: int) -> Iterator[Case]:
    """Yield mutated checkpoints, the same ones for the same seed and originals."""
    names = list(originals())
    # Published checkpoints are a hundred times larger than the others.
    weights = [1 if name in PUBLISHED else 5 for name in names]
    for number in range(count):
        draw = random.Random(f'{seed} {number}')
        (name,) = draw.choices(names, weights)
        original = originals()[name]
        fitting = [key for key, mutation in MUTATIONS.items() if mutation.applies_to(original)]
        kind = draw.choice(fitting)
        data = MUTATIONS[kind].apply(draw, original)
        yield Case(f'{name}/{kind} {number}', data, original.suffix)


def run(case: Case | None) -> Outcome:
    """Read a case as a user does, by `fmen_jax.load`. None reads the originals."""
    if case is None:
        for name in originals():
            _expected(name)
        return Outcome('equal', '')
    name, _, rest = case.name.partition('/')
    try:
        found = _load(case.data, case.suffix)
    except InputError as error:
        outcome = Outcome('error', str(error).splitlines()[0][:200])
    except BaseException as error:
        outcome = Outcome('failed', f'{type(error).__name__}: {str(error)[:200]}')
    else:
        why = MUTATIONS[rest.split()[0]].undetectable(originals()[name])
        if _equal(found, _expected(name)):
            outcome = Outcome('equal', '')
        else:
            outcome = Outcome('different' if why else 'failed', why or 'read as another network')
    if EXECUTED.exists():
        EXECUTED.rmdir()
        outcome = Outcome('failed', 'code was executed')
    return outcome


def _load(data: bytes, suffix: str) -> fmen_jax.Network:
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(data)
        file.flush()
        return fmen_jax.load(file.name)


@functools.cache
def _expected(name: str) -> fmen_jax.Network:
    original = originals()[name]
    return _load(original.data, original.suffix)


def _equal(one: fmen_jax.Network, other: fmen_jax.Network) -> bool:
    """Whether two networks have the same configuration, graph and bits."""
    if (one.config, one.graph) != (other.config, other.graph):
        return False
    leaves, others = (jax.tree.leaves(network.variables) for network in (one, other))
    return all(
        a.dtype == b.dtype and a.tobytes() == b.tobytes()
        for a, b in zip(map(np.asarray, leaves), map(np.asarray, others), strict=True)
    )
