"""Picture files of every kind, through a network, against expected pixels and metadata."""

import io
import itertools
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import pyvips
import skimage.data

from fmen_jax.errors import FMENWarning, InputError
from fmen_jax.images import write
from fmen_jax.images.read import filled, open_picture
from fmen_jax.images.write import SaveOptions
from fmen_jax.inference import jobs
from fmen_jax.inference.planning import Item
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.network import load

PHOTO = np.ascontiguousarray(skimage.data.astronaut()[:24, 100:131])
ALPHA = np.linspace(0, 255, 24 * 31).reshape(24, 31, 1).astype(np.uint8)
ALPHA[5:9, 5:9] = 0


@pytest.fixture
def upscaler(weights: Path) -> Upscaler:
    return Upscaler(load(weights))


def upscaled(source: Path, target: Path, upscaler: Upscaler, **options: Any) -> Any:
    """The output as libvips' image."""
    (result,) = jobs.run([Item(source, target)], upscaler, options=SaveOptions(**options))
    assert not result.error, result.error
    return pyvips.Image.new_from_file(str(target))


def saved(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    kind = {1: 'b-w', 2: 'b-w', 3: 'srgb', 4: 'srgb'}[pixels.shape[2]]
    if pixels.dtype == np.uint16:
        kind = {'b-w': 'grey16', 'srgb': 'rgb16'}[kind]
    image: Any = pyvips.Image.new_from_array(pixels)
    image.copy(interpretation=kind).write_to_file(str(path), **options)
    return path


def with_channels(channels: int, dtype: Any) -> np.ndarray:
    color = PHOTO if channels > 2 else PHOTO[..., :1]
    pixels = np.concatenate([color, ALPHA], -1) if channels in (2, 4) else color
    if dtype == np.uint8:
        return pixels
    if dtype == np.float32:
        return pixels.astype(np.float32) / 255
    # the low byte is not the high one: something is lost if it is cut to 8 bits
    return pixels.astype(np.uint16) * 256 + pixels[::-1]


@pytest.mark.parametrize(
    ('extension', 'dtype', 'channels'),
    [
        *itertools.product(['.png'], [np.uint8, np.uint16], [1, 2, 3, 4]),
        *itertools.product(['.tif'], [np.uint8, np.uint16, np.float32], [1, 2, 3, 4]),
        *itertools.product(['.webp'], [np.uint8], [3, 4]),  # it has no gray
    ],
)
def test_depth_and_channels_are_kept(
    channels: int, extension: str, dtype: Any, tmp_path: Path, upscaler: Upscaler
) -> None:
    pixels = with_channels(channels, dtype)
    source = saved(
        tmp_path / f'a{extension}',
        pixels,
        **({'lossless': True, 'exact': True} if extension == '.webp' else {}),
    )
    found = upscaled(source, tmp_path / f'b{extension}', upscaler)
    expected = upscaler(filled(pixels) if channels in (2, 4) else pixels)
    assert (found.bands, found.width, found.height) == (channels, 62, 48)
    array = found.numpy().reshape(48, 62, channels)
    assert array.dtype == dtype
    if extension == '.webp' and channels == 4:  # it forgets the color of hidden pixels
        seen = expected[..., 3] > 0
        np.testing.assert_array_equal(array[seen], expected[seen])
    else:
        np.testing.assert_array_equal(array, expected)


def test_sixteen_bits_are_not_cut(tmp_path: Path, upscaler: Upscaler) -> None:
    pixels = with_channels(3, np.uint16)
    found = upscaled(saved(tmp_path / 'a.png', pixels), tmp_path / 'b.png', upscaler).numpy()
    assert len(np.unique(found % 257)) > 200
    # a dark picture stays dark: the type decides, not the largest value
    dark = upscaled(saved(tmp_path / 'c.png', pixels // 300), tmp_path / 'd.png', upscaler).numpy()
    assert dark.dtype == np.uint16
    assert dark.mean() < 2 * (pixels // 300).mean() + 3000


def test_palette(tmp_path: Path, upscaler: Upscaler) -> None:
    image = PIL.Image.fromarray(PHOTO).quantize(16)
    image.save(tmp_path / 'a.png')
    found = upscaled(tmp_path / 'a.png', tmp_path / 'b.png', upscaler)
    np.testing.assert_array_equal(found.numpy(), upscaler(np.asarray(image.convert('RGB'))))
    image.save(tmp_path / 'c.png', transparency=3)
    found = upscaled(tmp_path / 'c.png', tmp_path / 'd.png', upscaler)
    assert found.bands == 4


def test_cmyk_becomes_srgb(tmp_path: Path, upscaler: Upscaler) -> None:
    PIL.Image.fromarray(PHOTO).convert('CMYK').save(tmp_path / 'a.jpg', quality=95)
    opened = open_picture(tmp_path / 'a.jpg')
    assert opened.channels == 3
    pixels = opened.rows.read(0, 24)
    assert np.abs(pixels.astype(int) - PHOTO).mean() < 40  # without a profile: roughly
    found = upscaled(tmp_path / 'a.jpg', tmp_path / 'b.png', upscaler)
    np.testing.assert_array_equal(found.numpy(), upscaler(pixels))
    assert 'icc-profile-data' not in found.get_fields()


def test_lab_of_16_bits_becomes_rgb_of_16_bits(tmp_path: Path) -> None:
    photo: Any = pyvips.Image.new_from_file(str(saved(tmp_path / 'a.png', PHOTO)))
    photo.colourspace('labs').write_to_file(str(tmp_path / 'a.tif'))
    opened = open_picture(tmp_path / 'a.tif')
    assert (opened.dtype, opened.channels) == (np.uint16, 3)
    # LABS has steps of 1/128 in a and b, which are a few of the 65535 steps of RGB
    assert np.abs(opened.rows.read(0, 24) - PHOTO * 257.0).max() < 32


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation_is_applied_once(orientation: int, tmp_path: Path, upscaler: Upscaler) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = 'a maker'
    PIL.Image.fromarray(PHOTO).save(tmp_path / 'a.png', exif=exif)
    upscaled(tmp_path / 'a.png', tmp_path / 'b.png', upscaler)
    swapped = PHOTO.swapaxes(0, 1)
    upright = [PHOTO, PHOTO[:, ::-1], PHOTO[::-1, ::-1], PHOTO[::-1]]
    upright += [swapped, swapped[:, ::-1], swapped[::-1, ::-1], swapped[::-1]]
    with PIL.Image.open(tmp_path / 'b.png') as found:
        expected = upscaler(np.ascontiguousarray(upright[orientation - 1]))
        np.testing.assert_array_equal(np.asarray(found), expected)
        assert found.getexif().get(0x0112, 1) == 1
        assert found.getexif()[0x010F] == 'a maker'


@pytest.mark.parametrize('extension', ['.png', '.jpg', '.tif', '.webp'])
def test_profile_exif_and_xmp_are_kept(extension: str, tmp_path: Path, upscaler: Upscaler) -> None:
    icc = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile('sRGB')).tobytes()
    exif = PIL.Image.Exif()
    exif[0x013B] = 'an artist'
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF/></x:xmpmeta>'
    data = io.BytesIO()
    PIL.Image.fromarray(PHOTO).save(data, 'jpeg', icc_profile=icc, exif=exif, dpi=(144, 144))
    image: Any = pyvips.Image.new_from_buffer(data.getvalue(), '').copy()
    image.set_type(pyvips.GValue.blob_type, 'xmp-data', xmp)
    image.write_to_file(str(tmp_path / f'a{extension}'))
    found = upscaled(tmp_path / f'a{extension}', tmp_path / f'b{extension}', upscaler)
    assert found.get('icc-profile-data') == icc
    assert xmp in found.get('xmp-data')
    if extension != '.tif':  # libvips writes no EXIF there
        with PIL.Image.open(tmp_path / f'b{extension}') as picture:
            assert picture.getexif()[0x013B] == 'an artist'
    if extension != '.webp':
        assert found.xres == pytest.approx(144 / 25.4, rel=0.01)


def test_formats_with_fewer_bits_and_options(tmp_path: Path, upscaler: Upscaler) -> None:
    source = saved(tmp_path / 'a.png', with_channels(3, np.uint16))
    expected = upscaler(with_channels(3, np.uint16)) / 257
    for extension, error in (('.jpg', 6), ('.webp', 0.51), ('.avif', 12)):
        found = upscaled(source, tmp_path / f'b{extension}', upscaler).numpy()
        assert found.dtype == np.uint8
        assert np.abs(found - expected).mean() <= error, extension
    sizes = [
        (upscaled(source, tmp_path / f'{q}.jpg', upscaler, quality=q), tmp_path / f'{q}.jpg')[1]
        .stat()
        .st_size
        for q in (20, 90)
    ]
    assert sizes[0] < sizes[1]
    real = saved(tmp_path / 'f.tif', with_channels(3, np.float32))
    assert upscaled(real, tmp_path / 'f.png', upscaler).numpy().dtype == np.uint8


def test_hidden_color_does_not_bleed(tmp_path: Path, upscaler: Upscaler) -> None:
    pixels = np.full((20, 20, 4), 200, np.uint8)
    pixels[:, 10:, :3] = 0  # black, but not to be seen
    pixels[:, :10, 3], pixels[:, 10:, 3] = 255, 0
    opened = open_picture(saved(tmp_path / 'a.png', pixels))
    whole = opened.rows.read(0, 20)
    assert (whole[:, 10:18, :3] == 200).all()
    np.testing.assert_array_equal(whole[..., 3], pixels[..., 3])
    again = open_picture(tmp_path / 'a.png').rows  # in pieces the same
    pieces = [again.read(start, start + 5) for start in range(0, 20, 5)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_constant_alpha_needs_no_network(tmp_path: Path, upscaler: Upscaler) -> None:
    pixels = np.concatenate([PHOTO, np.full_like(ALPHA, 128)], -1)
    opened = open_picture(saved(tmp_path / 'a.png', pixels))
    assert opened.rows.constant_alpha == 128
    found = upscaled(tmp_path / 'a.png', tmp_path / 'b.png', upscaler).numpy()
    assert (found[..., 3] == 128).all()
    np.testing.assert_array_equal(found[..., :3], upscaler(PHOTO))


@pytest.mark.parametrize('kind', ['empty', 'text', 'truncated', 'animated', 'bomb', 'complex'])
def test_faults_are_one_clear_error(kind: str, tmp_path: Path, upscaler: Upscaler) -> None:
    path, message = tmp_path / 'a.png', 'the file is not a complete, readable image'
    saved(path, skimage.data.astronaut())
    whole = path.read_bytes()
    if kind == 'empty':
        path.write_bytes(b'')
        message = 'the file is empty'
    elif kind == 'text':
        path.write_text('no picture')
    elif kind == 'truncated':
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == 'animated':
        path = tmp_path / 'a.webp'
        frames = [PIL.Image.fromarray(PHOTO), PIL.Image.fromarray(PHOTO[::-1].copy())]
        frames[0].save(path, save_all=True, append_images=frames[1:])
        message = 'has 2 pages'
    elif kind == 'bomb':
        header = whole[:16] + (40_000).to_bytes(4) * 2 + whole[24:29]
        path.write_bytes(header + zlib.crc32(header[12:29]).to_bytes(4) + whole[33:])
        message = 'at most 1,000,000,000 are allowed'
    else:
        path = tmp_path / 'a.tif'
        pyvips.Image.black(4, 4).cast('int').write_to_file(str(path))
        message = 'the pixels are of type int'
    good = saved(tmp_path / 'good.png', PHOTO)
    items = [Item(path, tmp_path / 'x.png'), Item(good, tmp_path / 'y.png')]
    results = {result.item.source: result for result in jobs.run(items, upscaler)}
    assert re.search(message, results[path].error), results[path].error
    assert str(path) in results[path].error
    assert not (tmp_path / 'x.png').exists()
    assert not results[good].error
    names = {p.name for p in tmp_path.iterdir()}
    assert names - {'a.png', path.name} == {'good.png', 'y.png'}  # nothing is left over


def claiming(path: Path, height: int, width: int, **options: Any) -> Path:
    """A JPEG whose header claims a size, with the data of a small picture."""
    data = io.BytesIO()
    PIL.Image.fromarray(PHOTO).save(data, 'jpeg', **options)
    whole = data.getvalue()
    frame = re.search(rb'\xff[\xc0\xc2]\0\x11\x08', whole)
    assert frame
    sides = height.to_bytes(2) + width.to_bytes(2)
    path.write_bytes(whole[: frame.end()] + sides + whole[frame.end() + 4 :])
    return path


def test_a_claim_of_more_pixels_than_the_file_can_hold(tmp_path: Path) -> None:
    """libjpeg would invent 900 million pixels, and these be rotated by way of a file on disk."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    with pytest.raises(InputError, match=r'claims 30000x30000 pixels, more than a file of [\d,]+'):
        open_picture(claiming(tmp_path / 'a.jpg', 30_000, 30_000, exif=exif))
    assert open_picture(claiming(tmp_path / 'b.jpg', 24, 31)).size == (31, 24)


@pytest.mark.parametrize('extension', ['.png', '.jpg'])
def test_the_densest_pictures_are_not_refused(extension: str, tmp_path: Path) -> None:
    """Of one color, and as small as libvips makes them."""
    blank: Any = pyvips.Image.black(4000, 4000)
    smallest = {
        '.png': {'bitdepth': 1, 'compression': 9},
        '.jpg': {'Q': 1, 'optimize_coding': True},
    }
    for interlaced in (False, True):
        path = tmp_path / f'{interlaced}{extension}'
        blank.copy(interpretation='b-w').write_to_file(
            str(path), interlace=interlaced, keep='none', **smallest[extension]
        )
        assert open_picture(path).rows.read(0, 10).shape == (10, 4000, 1)


def test_an_output_larger_than_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type('Usage', (), {'free': 2**20})
    monkeypatch.setattr(write.shutil, 'disk_usage', lambda folder: usage)
    monkeypatch.setattr(write, '_IN_MEMORY', 0)
    source = open_picture(saved(tmp_path / 'a.png', PHOTO))
    with pytest.raises(InputError, match=r'pixels need .* GiB on disk while the image is made'):
        write.Writer(tmp_path / 'b.png', source, 1000, SaveOptions())


def test_formats_that_cannot_hold_it(tmp_path: Path, upscaler: Upscaler) -> None:
    source = open_picture(saved(tmp_path / 'a.png', with_channels(4, np.uint8)))
    with pytest.raises(InputError, match='JPEG has no transparency'):
        write.Writer(tmp_path / 'b.jpg', source, 2, SaveOptions())
    with pytest.raises(InputError, match=r'31000x24000 is too large for .webp, which holds 16383'):
        write.Writer(tmp_path / 'b.webp', source, 1000, SaveOptions())
    with pytest.raises(InputError, match="file extension '.gif' is not that of an image"):
        write.Writer(tmp_path / 'b.gif', source, 2, SaveOptions())


@pytest.mark.parametrize(
    ('extension', 'option'), [('.png', 'quality'), ('.tif', 'quality'), ('.jpg', 'compression')]
)
def test_options_that_the_format_ignores(extension: str, option: str, tmp_path: Path) -> None:
    source = open_picture(saved(tmp_path / 'a.png', PHOTO))
    with pytest.warns(FMENWarning, match=f'{option} is ignored for {extension}; it applies to'):
        write.Writer(tmp_path / f'b{extension}', source, 2, SaveOptions(**{option: 5}))


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize('channels', [1, 2, 3, 4])
@pytest.mark.parametrize('height', [1, 24])
def test_large_outputs_wait_on_the_disk(
    channels: int,
    dtype: Any,
    height: int,
    tmp_path: Path,
    upscaler: Upscaler,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = with_channels(channels, dtype)[:height]
    source = saved(tmp_path / 'a.tif', pixels)
    before = upscaled(source, tmp_path / 'b.tif', upscaler)
    monkeypatch.setattr(write, '_IN_MEMORY', 10)
    found = upscaled(source, tmp_path / 'c.tif', upscaler)
    assert (found.interpretation, found.format) == (before.interpretation, before.format)
    np.testing.assert_array_equal(found.numpy(), before.numpy())
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.tif', 'b.tif', 'c.tif']
