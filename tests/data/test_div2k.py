"""DIV2K through the real TFDS builder, from zips made here, without TensorFlow."""

import dataclasses
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data

from fmen_jax.data import div2k
from fmen_jax.data.prepared import open_source, prepare
from fmen_jax.errors import InputError
from fmen_jax.files import sha256
from fmen_jax.images.bicubic import imresize
from tests.helpers import run_cli, save

NUMBERS = {'train': (1, 2, 800), 'valid': (801,)}


def picture(number: int) -> np.ndarray:
    """Of a size that is no multiple of the scale."""
    top = number % 7 * 20
    return skimage.data.astronaut()[top : top + 81, 50 : 150 + number % 4]


@pytest.fixture
def zips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The four zips of bicubic_x4, laid out as the official ones, and their checksums."""
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    folder = tmp_path / 'tfds/downloads/manual'
    folder.mkdir(parents=True)
    for part, numbers in NUMBERS.items():
        for kind, name, scale in (('HR', '', 1), ('LR_bicubic', 'x4', 4)):
            zip_name = f'DIV2K_{part}_{kind}' + ('_X4' if scale == 4 else '')
            inside = f'DIV2K_{part}_{kind}' + ('/X4' if scale == 4 else '')
            with zipfile.ZipFile(folder / f'{zip_name}.zip', 'w') as archive:
                archive.writestr(f'{inside}/', '')
                for number in numbers:
                    pixels = picture(number)
                    pixels = pixels[: len(pixels) // scale * scale] if scale > 1 else pixels
                    width = pixels.shape[1] // scale * scale if scale > 1 else pixels.shape[1]
                    shrunk = imresize(pixels[:, :width], 0.25) if scale > 1 else pixels
                    save(tmp_path / 'one.png', shrunk)
                    archive.write(tmp_path / 'one.png', f'{inside}/{number:04}{name}.png')
    accept(folder, monkeypatch)
    return folder


def accept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the zips' checksums in the place of the official ones."""
    builder: Any = div2k._builder_class()
    infos = {
        url: dataclasses.replace(info, checksum=sha256(folder / Path(url).name))
        if (folder / Path(url).name).exists()
        else info
        for url, info in builder.url_infos.items()
    }
    monkeypatch.setattr(builder, 'url_infos', infos)


@pytest.mark.slow
def test_pictures_come_out_as_they_went_in(zips: Path, tmp_path: Path) -> None:
    train = div2k.open_set('div2k/bicubic_x4')
    assert len(train.examples) == 3
    found = {pair.hr.tobytes(): pair for pair in map(train.pair, range(3))}
    for number in NUMBERS['train']:
        hr = picture(number)[:80, :100]
        np.testing.assert_array_equal(found[hr.tobytes()].lr, imresize(hr, 0.25))
    assert len(div2k.open_set('div2k/bicubic_x4/validation').examples) == 1
    assert list((tmp_path / 'tfds/div2k/bicubic_x4').rglob('*.array_record*'))
    assert 'tensorflow' not in sys.modules
    for path in zips.iterdir():  # prepared once: the zips are needed no more
        path.unlink()
    assert run_cli('prepare', 'div2k/bicubic_x4', '-s', 4, '-o', tmp_path / 'out') == 0
    source = open_source(tmp_path / 'out')
    assert {source.pixels(k)[1].tobytes() for k in range(3)} == set(found)
    assert prepare('div2k/bicubic_x4', 4) == prepare('div2k/bicubic_x4', 4)
    with pytest.raises(InputError, match=r'has scale 4, but the requested scale is 2'):
        prepare('div2k/bicubic_x4', 2)


@pytest.mark.slow
def test_zips_that_are_not_the_official_ones(zips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zips / 'DIV2K_train_HR.zip'
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r'DIV2K_train_HR.zip has SHA-256 .*, but that of'):
        div2k.open_set('div2k/bicubic_x4')
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('DIV2K_train_HR/0001.png', b'')
    accept(zips, monkeypatch)
    with pytest.raises(InputError, match=r'2 pictures are in only one of the .*, such as 0002'):
        div2k.open_set('div2k/bicubic_x4')


@pytest.mark.parametrize('name', ['div2k/bicubic_x5', 'div2k/bicubic_x4/test', 'div2k/'])
def test_names(name: str) -> None:
    with pytest.raises(InputError, match=r'no such set; expected div2k/bicubic_x2'):
        div2k.open_set(name)


def test_official_checksums_are_those_of_tfds() -> None:
    infos = div2k._builder_class().url_infos
    names = {url.rpartition('/')[2] for url in infos}
    assert {'DIV2K_train_HR.zip', 'DIV2K_valid_LR_bicubic_X2.zip'} <= names
    assert all(len(info.checksum) == 64 for info in infos.values())
