"""Checkpoints on disk: exact, strict, and harmless."""

import collections
import json
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fmen_jax import porting
from fmen_jax.errors import InputError
from fmen_jax.porting import checkpoint_files, pickled_tensors
from tests.helpers import Golden, writable

OFFICIAL = ['official/fmen_s_x4_github.pt', 'official/fmen_s_x4_ntire2022.pth']
BEFORE_1_6 = 'official/e_rfdn_x4.pth'


def assert_same_state(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Keys, order, shapes, dtypes and every bit."""
    assert list(found) == list(expected)
    for key, array in expected.items():
        assert found[key].shape == array.shape, key
        assert found[key].dtype == array.dtype, key
        assert found[key].tobytes() == array.tobytes(), key


def test_the_comparison_sees_one_bit(tiny_x2: Golden) -> None:
    """The twin of the round trips below."""
    state = tiny_x2.below('train/')
    changed = {**state, 'head.bias': np.nextafter(state['head.bias'], np.float32(1e9))}
    shuffled = dict(reversed(state.items()))
    wider = {**state, 'head.bias': state['head.bias'].astype(np.float64)}
    for other in (changed, shuffled, wider):
        with pytest.raises(AssertionError):
            assert_same_state(other, state)


def torch_state(path: Path) -> dict[str, np.ndarray]:
    """A checkpoint as PyTorch reads it."""
    import torch

    state = torch.load(path, map_location='cpu', weights_only=True)
    return {key: tensor.numpy() for key, tensor in state.items()}


@pytest.mark.parity
@pytest.mark.parametrize('name', [*OFFICIAL, BEFORE_1_6])
def test_published_checkpoints_are_read_as_torch_reads_them(
    name: str, shared: Callable[[str], Path], torch: Any
) -> None:
    assert_same_state(porting.read(shared(name)), torch_state(shared(name)))


@pytest.mark.parity
@pytest.mark.parametrize('extension', porting.EXTENSIONS)
@pytest.mark.parametrize('name', OFFICIAL)
def test_round_trip_of_published_checkpoints(
    name: str, extension: str, shared: Callable[[str], Path], tmp_path: Path, torch: Any
) -> None:
    original = torch_state(shared(name))
    ported = porting.to_variables(porting.read(shared(name)))
    state = porting.to_state_dict(
        ported.variables, ported.config, ported.graph, key_style=ported.key_style
    )
    path = tmp_path / f'out{writable(extension)}'
    porting.write(path, state, {})
    assert_same_state(porting.read(path), original)
    if extension != '.safetensors':
        assert_same_state(torch_state(path), original)
    else:
        from safetensors.torch import load_file

        found = {key: tensor.numpy() for key, tensor in load_file(path).items()}
        assert_same_state({key: found[key] for key in original}, original)


@pytest.mark.parity
@pytest.mark.parametrize('extension', porting.EXTENSIONS)
def test_round_trip_of_a_train_checkpoint(extension: str, tiny: Golden, tmp_path: Path) -> None:
    original = tiny.below('train/')
    original = {**original, 'warmup.1.bn1.num_batches_tracked': np.array(2**40)}
    ported = porting.to_variables(original)
    state = porting.to_state_dict(ported.variables, ported.config, ported.graph)
    path = tmp_path / f'out{writable(extension)}'
    porting.write(path, state, {'network': 'tiny'})
    assert_same_state(porting.read(path), original)
    assert not list(tmp_path.glob('.*'))  # nothing is left aside


@pytest.mark.parametrize('dtype', [np.float16, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize('extension', porting.EXTENSIONS)
def test_other_dtypes_survive(extension: str, dtype: Any, tiny: Golden, tmp_path: Path) -> None:
    state = {k: np.asarray(v, dtype) for k, v in tiny.below('deploy/').items() if k != 'y'}
    path = tmp_path / f'out{writable(extension)}'
    porting.write(path, state, {})
    assert_same_state(porting.read(path), state)
    porting.to_variables(porting.read(path))


def test_views_of_one_storage(tmp_path: Path, torch: Any) -> None:
    """Slices, transposes and shared storages, as training code saves them."""
    base = torch.arange(24.0)
    tree = {
        'a': base[3:9].view(2, 3),
        'b': base.view(4, 6).t(),
        'c': torch.nn.Parameter(base[:0]),
        'd': torch.tensor(7),
    }
    torch.save(collections.OrderedDict(tree), tmp_path / 'views.pt')
    expected = {key: tensor.detach().numpy() for key, tensor in tree.items()}
    assert_same_state(porting.read(tmp_path / 'views.pt'), expected)


class Malicious:
    """A pickle that touches a file when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def test_a_malicious_pickle_does_not_run(tmp_path: Path, torch: Any) -> None:
    proof = tmp_path / 'executed'
    bad = tmp_path / 'bad.pth'
    torch.save({'head.weight': torch.zeros(1), 'x': Malicious(proof)}, bad)
    with pytest.raises(InputError, match='refused, because reading it could run code'):
        porting.read(bad)
    assert not proof.exists()
    torch.load(bad, weights_only=False)  # the twin: this file does run when it may
    assert proof.exists()


def test_attributes_cannot_be_reached_through_allowed_names(tmp_path: Path) -> None:
    """The reader's own names are no ladder: what a pickle is given cannot be called with more."""
    for module, name in [('builtins', 'eval'), ('torch', 'load'), ('collections', 'abc')]:
        pickled = b'\x80\x02c' + f'{module}\n{name}\n'.encode() + b'.'
        with zipfile.ZipFile(tmp_path / 'x.pt', 'w') as archive:
            archive.writestr('x/data.pkl', pickled)
        with pytest.raises(pickle.UnpicklingError, match=f'{module}.{name}'):
            pickled_tensors.load(tmp_path / 'x.pt')


def test_storages_of_another_size_or_byte_order_are_refused(tmp_path: Path, torch: Any) -> None:
    torch.save({'a': torch.arange(3.0)}, tmp_path / 'good.pt')
    with zipfile.ZipFile(tmp_path / 'good.pt') as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    for suffix, content in [('/data/0', b'1234'), ('/byteorder', b'big')]:
        with zipfile.ZipFile(tmp_path / 'bad.pt', 'w') as archive:
            for name, old in files.items():
                archive.writestr(name, content if name.endswith(suffix) else old)
        with pytest.raises(pickled_tensors.BrokenFileError):
            pickled_tensors.load(tmp_path / 'bad.pt')


STORAGE = b'(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQ'


@pytest.mark.parametrize(
    'pickled',
    [
        b'\x80\x02}r\xff\xff\xff\x3f.',  # object number 2^30 of a table
        b'\x80\x02}p1000000000\n.',
        b'\x80\x05\x96' + (2**40).to_bytes(8, 'little') + b'.',  # 2^40 bytes
        b'\x80\x04\x8e' + (2**40).to_bytes(8, 'little') + b'.',
        b'\x80\x02X\xff\xff\xff\x7f.',  # a string of 2 GiB
        # a tensor of 2^40 elements with strides 0
        b'\x80\x02ctorch._utils\n_rebuild_tensor\n('
        + STORAGE
        + b'K\0\x8a\x06\0\0\0\0\0\x01\x85K\0\x85tR.',
    ],
)
@pytest.mark.parametrize('legacy', [False, True])
def test_declared_sizes_are_compared_with_the_file(
    pickled: bytes, legacy: bool, tmp_path: Path
) -> None:
    path = tmp_path / 'x.pt'
    if legacy:
        start = [pickle.dumps(o, 2) for o in (0x1950A86A20F9469CFC6C, 1001, {'little_endian': 1})]
        path.write_bytes(b''.join([*start, pickled, b'.' * 10]))
    else:
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('x/data.pkl', pickled)
            archive.writestr('x/data/0', bytes(4))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match='broken or truncated'):
            porting.read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def zip_of(pickled: bytes, path: Path) -> Path:
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('x/data.pkl', pickled)
        archive.writestr('x/data/0', bytes(4))
    return path


REBUILD = b'ctorch._utils\n_rebuild_tensor\n('


@pytest.mark.parametrize(
    ('pickled', 'message'),
    [
        # A tensor of stride 0 over one element, and another one whose storage is that tensor.
        (
            REBUILD + REBUILD + STORAGE + b'K\0K\x0e\x85K\0\x85tRK\0K\x0e\x85K\x01\x85tR',
            'a tensor has the storage array',
        ),
        # A tuple that contains a tuple, and so on, as a key.
        (b'})' + b'\x85' * 1_000_000 + b'K\x01s', 'more than 40000 tuples'),
    ],
)
def test_crafted_objects_are_refused(pickled: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        porting.read(zip_of(b'\x80\x02' + pickled + b'.', tmp_path / 'x.pt'))


def test_a_tensor_without_its_contents_is_within_its_memory() -> None:
    placeholder = np.broadcast_to(np.float32(1), (9,))
    view = pickled_tensors._rebuild(placeholder, 1, (2, 4), (4, 1))
    assert view.strides == (0, 0)
    assert view.sum() == 8


@pytest.mark.parametrize(
    ('pickled', 'message'),
    [
        (b'}q\0X\x06\0\0\0paramsh\0s', 'more than 8 wrappers or prefixes'),  # contains itself
        (
            b'}X'
            + (6000).to_bytes(4, 'little')
            + b'model.' * 1000
            + REBUILD
            + STORAGE
            + b'K\0))tRs',
            'more than 8 wrappers or prefixes',
        ),
        (b'}K\x07' + REBUILD + STORAGE + b'K\0))tRs', 'names such as 7; expected strings'),
    ],
)
def test_odd_state_dicts(pickled: bytes, message: str, tmp_path: Path) -> None:
    tree = porting.read(zip_of(b'\x80\x02' + pickled + b'.', tmp_path / 'x.pt'))
    with pytest.raises(InputError, match=message):
        porting.to_variables(tree)


def test_a_pickle_cannot_hide_the_methods_of_a_dict(tmp_path: Path) -> None:
    state = pickle.dumps({'keys': 5, 'values': 5, 'items': 5}, 2)[2:-1]
    pickled = b'\x80\x02ccollections\nOrderedDict\n)R' + state + b'b.'
    assert porting.read(zip_of(pickled, tmp_path / 'x.pt')) == {}


def test_a_member_that_unpacks_to_more_than_the_file_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / 'x.pt', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('x/data.pkl', pickle.dumps({}, 2))
        archive.writestr('x/byteorder', bytes(10**7))
    with pytest.raises(InputError, match='unpacks to more bytes than it has'):
        porting.read(tmp_path / 'x.pt')


def test_a_pickle_cannot_change_a_dtype(tmp_path: Path) -> None:
    """`__setstate__` of a NumPy dtype changes it for the whole process."""
    size = np.dtype(ml_dtypes.bfloat16).itemsize
    state = pickle.dumps((3, '<', None, None, None, 16, 16, 0), 2)[2:-1]
    path = tmp_path / 'x.pt'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('x/data.pkl', b'\x80\x02ctorch\nBFloat16Storage\n' + state + b'b.')
    with pytest.raises(InputError, match='broken or truncated'):
        porting.read(path)
    assert np.dtype(ml_dtypes.bfloat16).itemsize == size


def test_a_header_longer_than_its_file(tmp_path: Path) -> None:
    for content in ((2**62).to_bytes(8, 'little') + b'{}', (2).to_bytes(8, 'little') + b'[]'):
        (tmp_path / 'x.safetensors').write_bytes(content)
        with pytest.raises(InputError, match='broken or truncated safetensors file: its header'):
            porting.read(tmp_path / 'x.safetensors')


def test_a_picture_named_pt(tmp_path: Path) -> None:
    (tmp_path / 'x.pt').write_bytes(b'\x89PNG\r\n\x1a\n' + bytes(90))
    with pytest.raises(InputError, match=r'x.pt: (not a|broken or truncated) PyTorch') as caught:
        porting.read(tmp_path / 'x.pt')
    assert 'weights_only' not in str(caught.value)


@pytest.mark.parametrize(
    ('shape', 'strides', 'offset'), [((5,), (1,), 0), ((2,), (1,), 3), ((2,), (-1,), 1)]
)
def test_a_tensor_outside_its_storage_is_refused(
    shape: tuple[int, ...], strides: tuple[int, ...], offset: int
) -> None:
    with pytest.raises(pickled_tensors.BrokenFileError, match='a tensor'):
        pickled_tensors._rebuild(np.arange(4.0), offset, shape, strides)
    np.testing.assert_array_equal(pickled_tensors._rebuild(np.arange(4.0), 1, (2,), (2,)), [1, 3])


@pytest.mark.parametrize('extension', porting.EXTENSIONS)
@pytest.mark.parametrize('keep', [0, 7, 0.4, 0.9, 0.999])
def test_a_truncated_file_is_one_clear_error(
    extension: str, keep: float, tiny_x2: Golden, tmp_path: Path
) -> None:
    path = tmp_path / f'cut{writable(extension)}'
    state = tiny_x2.below('train/')
    porting.write(path, state, {})
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(InputError, match=f'cut{extension}: broken or truncated'):
        porting.read(path)


def test_a_key_twice_in_a_safetensors_file(tiny_x2: Golden, tmp_path: Path) -> None:
    path = tmp_path / 'twice.safetensors'
    porting.write(path, tiny_x2.below('train/'), {})
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], 'little')
    header = content[8:end].decode().rstrip()
    entry = json.dumps(json.loads(header)['head.bias'])
    doubled = (header[:-1] + f',"head.bias":{entry}}}').encode()
    path.write_bytes(len(doubled).to_bytes(8, 'little') + doubled + content[end:])
    with pytest.raises(
        InputError, match=r'twice.safetensors: duplicate names in the file: head.bias'
    ):
        porting.read(path)


def test_a_file_is_the_same_each_time_and_keeps_its_metadata(tmp_path: Path) -> None:
    import safetensors

    path = tmp_path / 'x.safetensors'
    notes = {name: name.upper() for name in ('a', 'b', 'c', 'd', 'e')}
    contents = set()
    for _ in range(8):
        porting.write(path, {'z': np.ones(3, np.float32), 'a': np.zeros(2)}, notes)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    with safetensors.safe_open(path, 'np') as file:
        assert file.metadata() == {'format': 'pt', **notes}


def test_other_files_are_refused(tmp_path: Path, torch: Any) -> None:
    with pytest.raises(InputError, match='no such file'):
        porting.read(tmp_path / 'missing.pt')
    with pytest.raises(
        InputError, match=r"extension '.onnx'.*expected one of .pt, .pth, .safetensors"
    ):
        porting.read(tmp_path / 'model.onnx')
    torch.save([torch.zeros(1)], tmp_path / 'list.pt')
    with pytest.raises(InputError, match='contains a list; expected tensors by name'):
        porting.read(tmp_path / 'list.pt')


def test_writing_pt_without_torch_says_what_to_do(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(checkpoint_files.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(InputError, match=r'needs PyTorch.*write\s+.safetensors'):
        porting.write(tmp_path / 'out.pt', {}, {})
    assert not list(tmp_path.iterdir())


def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: Any, torch: Any) -> None:
    path = tmp_path / 'out.pt'
    path.write_bytes(b'old')

    def write(file: Path, content: Any) -> None:
        with file.open('wb') as half:
            half.write(content[: len(content) // 2])
        raise OSError('no space left')

    monkeypatch.setattr(Path, 'write_bytes', write)
    with pytest.raises(OSError, match='no space left'):
        porting.write(path, {'a': np.zeros(9)}, {})
    monkeypatch.undo()
    assert path.read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [path]
