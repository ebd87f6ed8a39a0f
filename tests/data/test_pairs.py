"""Folders in the layouts of the field."""

from pathlib import Path

import numpy as np
import pytest

from fmen_jax.data.pairs import find_pairs, load_pair
from fmen_jax.errors import InputError
from fmen_jax.images.bicubic import imresize
from tests.helpers import PHOTO, lay_out, save

LAYOUTS = ['SelfExSR', 'EDSR', 'DIV2K', 'BasicSR', 'HR folder', 'HR alone']


@pytest.mark.parametrize('scale', [2, 3])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts(layout: str, scale: int, tmp_path: Path, cache: Path) -> None:
    """All give the same pairs; LR files that are not there are made, once."""
    pairs = find_pairs(lay_out(tmp_path / 'bench', layout, scale), scale)
    made = 'HR' in layout.split()
    assert [pair.lr is None for pair in pairs] == [made, made]
    for _ in range(2):
        first, second = (load_pair(pair, scale) for pair in pairs)
        height, width = (size // scale * scale for size in PHOTO.shape[:2])
        np.testing.assert_array_equal(first.hr, PHOTO[:height, :width])
        np.testing.assert_array_equal(first.lr, imresize(first.hr, 1 / scale))
        assert second.hr.shape == first.hr.shape  # gray, in three equal channels
        assert (second.hr == second.hr[..., :1]).all()
        assert len(list(cache.glob('lr/*.png'))) == 2 * made


def test_the_kept_lr_picture_is_of_the_shape_too(tmp_path: Path) -> None:
    for height, width in ((8, 16), (16, 8)):
        save(tmp_path / f'{height}.png', np.zeros((height, width, 3), np.uint8))
    save(tmp_path / '._8.png', np.zeros((8, 8, 3), np.uint8))  # as macOS leaves them
    shapes = [load_pair(pair, 2).lr.shape for pair in find_pairs(tmp_path, 2)]
    assert shapes == [(8, 4, 3), (4, 8, 3)]


def test_pictures_of_one_stem_have_names_of_their_own(tmp_path: Path) -> None:
    for name in ('a.jpg', 'a.png', 'b.png'):
        save(tmp_path / name, PHOTO)
    assert [pair.name for pair in find_pairs(tmp_path, 2)] == ['a.jpg', 'a.png', 'b']


def test_a_damaged_or_absent_cache_only_costs_time(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pair, _) = find_pairs(lay_out(tmp_path / 'bench', 'HR alone'), 2)
    expected = load_pair(pair, 2).lr
    (cached,) = cache.glob('lr/*.png')
    whole = cached.read_bytes()
    cached.write_bytes(whole[:200])
    np.testing.assert_array_equal(load_pair(pair, 2).lr, expected)
    assert cached.read_bytes() == whole  # repaired
    save(cached, PHOTO)
    np.testing.assert_array_equal(load_pair(pair, 2).lr, expected)
    (tmp_path / 'file').touch()
    monkeypatch.setenv('FMEN_JAX_CACHE', str(tmp_path / 'file'))
    np.testing.assert_array_equal(load_pair(pair, 2).lr, expected)


def test_faults_of_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match='missing: no such folder'):
        find_pairs(tmp_path / 'missing', 2)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(InputError, match=r'no pictures for x2.*image_SRF_2/\*_HR.png, HR/\*.png'):
        find_pairs(tmp_path / 'empty', 2)
    folder = lay_out(tmp_path / 'lost', 'EDSR')
    (folder / 'LR_bicubic/X2/bx2.png').unlink()
    with pytest.raises(InputError, match=r'1 of 2 LR pictures are missing, such as .*bx2.png'):
        find_pairs(folder, 2)
    folder = lay_out(tmp_path / 'sizes', 'EDSR')
    save(folder / 'LR_bicubic/X2/ax2.png', PHOTO[:20])
    with pytest.raises(InputError, match=r'ax2.png and .*: LR is 73x20 and HR 73x57; .* 36x28'):
        load_pair(find_pairs(folder, 2)[0], 2)
    folder = lay_out(tmp_path / 'deep', 'EDSR')
    save(folder / 'HR/a.png', PHOTO[..., 0].astype(np.uint16) * 257)
    with pytest.raises(InputError, match='a.png: the image is not 8 bit'):
        load_pair(find_pairs(folder, 2)[0], 2)
