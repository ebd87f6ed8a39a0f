"""Dumps that are damaged, incomplete or of another network are refused with one clear line."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fmen_jax.parity
from fmen_jax import porting
from fmen_jax.errors import InputError
from fmen_jax.network import Network
from fmen_jax.parity import Dump, compare
from fmen_jax.parity.dump import FORMAT
from tests.helpers import Golden, golden_dump, run_cli

MAP = np.zeros((1, 3, 4, 4))
PROBE = Path(fmen_jax.parity.__file__).with_name('probe.py').read_text(encoding='utf-8')
TRAIN = {f'train/{name}': np.zeros((2, 1, 3, 4, 4)) for name in 'xy'}
STEP = {**TRAIN, 'train/float64/out': MAP, 'train/float64/loss': 1.0}

# what is there, and what the message says
FAULTY: dict[str, tuple[dict[str, Any], str]] = {
    'meta': ({'meta': '{"format": 1'}, 'meta is not JSON: Expecting'),
    'deep meta': ({'meta': '[' * 100_000}, ''),
    'no format': ({'meta': '{}'}, 'its format is None, not 1'),
    'format': ({'meta': '{"format": 2}'}, 'its format is 2, not 1'),
    'no object': ({'meta': '[3]'}, r'its format is \[3\], not 1'),
    'notes': ({'meta': '{"format": 1, "notes": {}}'}, 'notes of meta is not a list'),
    'faults': ({'meta': '{"format": 1, "faults": 3}'}, 'faults of meta is not a dict'),
    'missing': (
        {'meta': '{"format": 1, "faults": {"missing": 3}}'},
        'missing of meta is not a list',
    ),
    'misshapen': (
        {'meta': '{"format": 1, "faults": {"misshapen": ["a"]}}'},
        'misshapen of meta is not a dict',
    ),
    'one shape': (
        {'meta': '{"format": 1, "faults": {"misshapen": {"a": [[3]]}}}'},
        r'misshapen of meta is not a dict of pairs: a is \[\[3\]\]',
    ),
    'name': ({'head.weight': MAP}, "no dump has an array 'head.weight'"),
    'name in eval': ({'input/a': MAP, 'eval/float64/a/x': MAP}, 'has an array .eval/float64/a/x'),
    'dtype': ({'input/a': np.zeros((1, 3, 4, 4), complex)}, 'is of dtype complex128, not of'),
    'text': ({'state/a': 'x'}, 'state/a is of dtype <U1, not of numbers'),
    'dimensions': ({'input/a': np.zeros(5)}, r'has the shape \[5\], not \[N, C, H, W\]'),
    'empty': ({'input/a': np.zeros((1, 0, 4, 4))}, r'has the shape \[1, 0, 4, 4\]'),
    'empty weight': ({'state/a': np.zeros((0, 3))}, r'state/a has the shape \[0, 3\], without any'),
    'empty gradient': (
        {**STEP, 'train/float64/grad/a': np.zeros(0)},
        r'grad/a has the shape \[0\], without any values',
    ),
    'two shapes': (
        {'input/a': MAP, 'eval/float64/a/out': MAP, 'eval/float32/a/out': MAP[..., 1:]},
        r'a/out has the shape \[1, 3, 4, 3\] in float32, but \[1, 3, 4, 4\] in float64',
    ),
    'scalar': ({**TRAIN, 'train/float64/loss': np.zeros(2)}, r'has the shape \[2\], not \[\]'),
    'no input': ({'eval/float64/a/out': MAP}, 'float64/a/out is there, but input/a is not'),
    'no output': (
        {'input/a': MAP, 'eval/float64/a/layers/head/out': MAP},
        'head/out is there, but eval/float64/a/out is not',
    ),
    'no batch': (
        {'train/float64/out': MAP, 'train/float64/loss': 1.0},
        'train/float64/out is there, but train/x is not',
    ),
    'no target': ({'train/x': TRAIN['train/x']}, 'train/x is there, but train/y is not'),
    'no loss': ({**TRAIN, 'train/float64/out': MAP}, 'but train/float64/loss is not'),
    'gradient alone': ({**TRAIN, 'train/float64/grad/a': MAP}, 'but train/float64/out is not'),
    'state alone': ({'train/float64/steps/state/a': MAP}, 'but train/float64/steps/loss is not'),
    'steps': ({**TRAIN, 'train/float64/steps/loss': np.ones(3)}, 'more steps than train/x'),
    'levels': ({'picture/a': MAP}, 'picture/a is of dtype float64, not uint8'),
    'picture': ({'picture/a': np.zeros((1, 3, 4, 4), np.uint8)}, 'but upscaled/a is not'),
    'pictures': ({'picture/a': np.zeros((2, 3, 4, 4), np.uint8)}, r'not \[1, C, H, W\]'),
}


@pytest.mark.parametrize('name', FAULTY)
def test_faulty_dumps_are_refused(name: str, tmp_path: Path) -> None:
    arrays, message = FAULTY[name]
    np.savez(tmp_path / 'dump.npz', **arrays)
    for source in (arrays, tmp_path / 'dump.npz'):
        with pytest.raises(InputError, match=f'not a dump of a reference .*{message}') as caught:
            Dump(source)
        assert '\n' not in str(caught.value)


def test_files_that_are_no_dump(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / 'dump.npz'
    np.savez_compressed(path, **{'input/a': np.arange(48.0).reshape(1, 3, 4, 4)})
    whole = path.read_bytes()
    with path.open('wb') as file:
        np.save(file, MAP)
    with pytest.raises(InputError, match='a single array'):
        Dump(path)
    start = whole.index(b'.npy') + 4
    for damaged in (b'', whole[:100], whole[:start] + bytes(60) + whole[start + 60 :]):
        path.write_bytes(damaged)
        assert run_cli('parity', weights, '--reference', path) == 2
        assert 'dump.npz: not a dump of a reference (' in capsys.readouterr().err


def test_a_dump_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / 'dump.npz', **{'input/a': MAP})
    assert Dump(tmp_path / 'dump.npz').cases == ['a']
    monkeypatch.setattr('fmen_jax.parity.dump.MAX_BYTES', MAP.nbytes)
    with pytest.raises(InputError, match='more than 384; record fewer or smaller inputs'):
        Dump(tmp_path / 'dump.npz')


@pytest.mark.parametrize(
    ('arrays', 'message'),
    [
        ({'input/a': np.zeros((1, 4, 4, 4))}, r'\[1, 4, 4, 4\]; expected \[1, 3, 4, 4\]'),
        (TRAIN, r'train/y of the dump is \[2, 1, 3, 4, 4\]; expected \[2, 1, 3, 8, 8\]'),
        (
            {
                'picture/a': np.zeros((1, 3, 4, 4), np.uint8),
                'upscaled/a': np.zeros((1, 3, 12, 12), np.uint8),
            },
            r'upscaled/a .* for a network of 3 channels that upscales by 2.* another one',
        ),
    ],
)
def test_a_dump_of_another_network(
    arrays: dict[str, np.ndarray], message: str, tiny_x2: Golden
) -> None:
    ported = porting.to_variables(tiny_x2.below('train/'))
    network = Network(ported.config, 'collapsed', ported.variables)
    with pytest.raises(InputError, match=message):
        compare(network, arrays)


def test_the_probe_writes_this_format(tiny: Golden) -> None:
    assert re.search(f'^FORMAT = {FORMAT}$', PROBE, re.MULTILINE)
    meta = np.array(json.dumps({'format': FORMAT, 'notes': ['a']}))
    assert Dump({**golden_dump(tiny), 'meta': meta}).meta['notes'] == ['a']


@pytest.mark.parametrize('name', ['_WRAPPERS', '_PREFIXES', '_MAX_WRAPPERS'])
def test_the_probe_unwraps_what_porting_unwraps(name: str) -> None:
    """The probe is one file, which imports nothing of this package."""
    porting_source = inspect.getsource(porting.state_dict)
    found = [
        re.search(rf'^{name} = (\([^)]*\)|\d+)', text, re.MULTILINE)
        for text in (PROBE, porting_source)
    ]
    ours, theirs = (match and match[0] for match in found)
    assert ours is not None
    assert ours == theirs
