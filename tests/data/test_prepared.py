"""Prepared sources: decoded once, whole, and found again."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from fmen_jax.data import prepared
from fmen_jax.data.pairs import find_pairs, load_pair
from fmen_jax.data.prepared import open_source, prepare
from fmen_jax.errors import InputError
from fmen_jax.images.bicubic import imresize
from tests.helpers import PHOTO, lay_out, save


@pytest.mark.parametrize('layout', ['EDSR', 'HR alone'])
@pytest.mark.parametrize('scale', [2, 3])
def test_pixels_are_those_of_the_files(layout: str, scale: int, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / 'photos', layout, scale)
    seen: list[tuple[int, int]] = []
    source = open_source(prepare(folder, scale, report=lambda *counts: seen.append(counts)))
    assert seen == [(1, 2), (2, 2)]
    assert (source.scale, source.skipped) == (scale, ())
    for number, pair in enumerate(find_pairs(folder, scale)):
        loaded = load_pair(pair, scale)
        for again in (source, pickle.loads(pickle.dumps(source))):
            lr, hr = again.pixels(number)
            np.testing.assert_array_equal(lr, loaded.lr)
            np.testing.assert_array_equal(hr, loaded.hr)
        np.testing.assert_array_equal(lr, imresize(loaded.hr, 1 / scale))


def test_a_second_run_does_nothing_and_a_change_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lay_out(tmp_path / 'photos', 'HR alone')
    first = prepare(folder, 2)
    with monkeypatch.context() as patch:
        patch.setattr(prepared, '_write', None)  # a call would fail
        assert prepare(folder, 2) == first
    save(folder / 'c.png', PHOTO[:30])
    second = prepare(folder, 2)
    assert second != first
    assert len(open_source(second).entries) == 3
    os.utime(folder / 'c.png', (1, 1))
    assert prepare(folder, 2) not in (first, second)
    assert prepare(folder, 3) not in (first, second)


def test_a_named_folder_is_not_overwritten_by_other_pictures(tmp_path: Path) -> None:
    output = tmp_path / 'prepared'
    folder = lay_out(tmp_path / 'photos', 'HR alone')
    assert prepare(folder, 2, output=output) == output
    assert prepare(folder, 2, output=output) == output
    with pytest.raises(InputError, match='was prepared from other pictures or settings'):
        prepare(folder, 3, output=output)
    assert open_source(output).scale == 2
    with pytest.raises(InputError, match='contains something other than a prepared source'):
        prepare(folder, 2, output=folder)
    assert sorted(path.name for path in folder.iterdir()) == ['a.png', 'b.png']


def test_broken_pictures_are_named_and_refused_or_skipped(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / 'photos', 'HR alone')
    (folder / 'cut.png').write_bytes((folder / 'a.png').read_bytes()[:2000])
    (folder / 'text.jpg').write_text('no picture')
    output = tmp_path / 'prepared'
    with pytest.raises(InputError, match='2 of 4 pictures cannot be used') as caught:
        prepare(folder, 2, output=output)
    assert 'cut.png' in str(caught.value)
    assert 'text.jpg' in str(caught.value)
    assert not output.exists()
    assert not output.with_name('prepared.part').exists()
    source = open_source(prepare(folder, 2, output=output, broken='skip'))
    assert [entry.name for entry in source.entries] == ['a', 'b']
    assert len(source.skipped) == 2
    np.testing.assert_array_equal(source.pixels(0)[1], PHOTO[:56, :72])


def test_what_is_not_a_prepared_source(tmp_path: Path) -> None:
    with pytest.raises(InputError, match='is not a prepared source'):
        open_source(tmp_path)
    output = prepare(lay_out(tmp_path / 'photos', 'HR alone'), 2, output=tmp_path / 'prepared')
    with (output / 'hr.u8').open('r+b') as file:
        file.truncate(1000)
    with pytest.raises(InputError, match=r'is incomplete: its files have \[6048, 1000\] bytes'):
        open_source(output)
