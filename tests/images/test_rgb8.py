"""Picture files: what is read, what is written, what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import skimage.data
from PIL import Image

from fmen_jax.errors import InputError
from fmen_jax.images import read
from fmen_jax.images.read import RGB8_EXTENSIONS, read_rgb8
from fmen_jax.images.write import write_rgb8

RGB = skimage.data.astronaut()[:50, :70]
GRAY = skimage.data.camera()[:50, :70]


@pytest.mark.parametrize('extension', RGB8_EXTENSIONS)
def test_written_and_read(extension: str, tmp_path: Path) -> None:
    path = tmp_path / f'x{extension}'
    write_rgb8(path, RGB)
    back = read_rgb8(path)
    lossless = extension not in ('.jpg', '.jpeg')
    error = np.abs(back.astype(int) - RGB)
    assert error.max() == 0 if lossless else error.mean() < 2.5
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('extension', RGB8_EXTENSIONS)
def test_pixels_are_pillows(extension: str, tmp_path: Path) -> None:
    """An outside oracle: the same file read by Pillow."""
    path = tmp_path / f'x{extension}'
    Image.fromarray(RGB).save(path)
    with Image.open(path) as image:
        theirs = np.asarray(image.convert('RGB')).astype(int)
    # two decoders of lossy formats may differ by rounding
    lossy = extension in ('.jpg', '.jpeg', '.webp')
    assert np.abs(read_rgb8(path) - theirs).max() <= (2 if lossy else 0)


@pytest.mark.parametrize('extension', ['.png', '.jpg', '.tif'])
def test_gray_is_read_as_rgb_and_written_as_gray(extension: str, tmp_path: Path) -> None:
    Image.fromarray(GRAY).save(tmp_path / f'in{extension}')
    pixels = read_rgb8(tmp_path / f'in{extension}')
    assert pixels.shape == (50, 70, 3)
    assert (pixels == pixels[..., :1]).all()
    write_rgb8(tmp_path / f'out{extension}', pixels[..., :1])
    with Image.open(tmp_path / f'out{extension}') as image:
        assert image.mode == 'L'
        assert np.abs(np.asarray(image).astype(int) - GRAY).max() <= (
            12 if extension == '.jpg' else 0
        )


def test_palette_is_expanded(tmp_path: Path) -> None:
    image = Image.fromarray(RGB).quantize(16)
    image.save(tmp_path / 'p.png')
    np.testing.assert_array_equal(read_rgb8(tmp_path / 'p.png'), image.convert('RGB'))


def test_a_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    for extension in RGB8_EXTENSIONS:
        path = tmp_path / f'x{extension}'
        for pixels in (RGB, 255 - RGB):
            Image.fromarray(pixels).save(path)
            assert np.abs(read_rgb8(path).astype(int) - pixels).mean() < 10, extension


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation_is_applied_once(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / 'x.png', exif=exif)
    upright = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: RGB[::-1].transpose(1, 0, 2),
        7: RGB[::-1, ::-1].transpose(1, 0, 2),
        8: RGB.transpose(1, 0, 2)[::-1],
    }[orientation]
    np.testing.assert_array_equal(read_rgb8(tmp_path / 'x.png'), upright)


def refused(kind: str, path: Path) -> Path:
    """A file of a kind that is not handled."""
    rgba = np.dstack([RGB, np.full(RGB.shape[:2], 200, np.uint8)])
    if kind == 'rgba.png':
        Image.fromarray(rgba).save(path / kind)
    elif kind == 'la.png':
        Image.fromarray(rgba[..., 2:]).save(path / kind)
    elif kind == 'palette-alpha.png':
        image = Image.fromarray(RGB).quantize(16)
        image.save(path / kind, transparency=3)
    elif kind == '16bit.png':
        pyvips.Image.new_from_array(RGB.astype(np.uint16) * 257).copy(
            interpretation='rgb16'
        ).write_to_file(str(path / kind))
    elif kind == 'float.tif':
        pyvips.Image.new_from_array(RGB.astype(np.float32)).write_to_file(str(path / kind))
    elif kind == 'cmyk.jpg':
        Image.fromarray(RGB).convert('CMYK').save(path / kind)
    elif kind == 'pages.tif':
        Image.fromarray(RGB).save(path / kind, save_all=True, append_images=[Image.fromarray(RGB)])
    elif kind == 'animation.webp':
        frames = [Image.fromarray(RGB[::-1])]
        Image.fromarray(RGB).save(path / kind, save_all=True, append_images=frames)
    elif kind == 'gif.png':
        Image.fromarray(RGB).save(path / kind, format='GIF')
    elif kind == 'svg.png':
        (path / kind).write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    elif kind == 'empty.png':
        (path / kind).touch()
    elif kind == 'text.jpg':
        (path / kind).write_text('not a picture')
    else:
        Image.fromarray(RGB).save(path / kind)
        content = (path / kind).read_bytes()
        (path / kind).write_bytes(content[: len(content) * 2 // 3])
    return path / kind


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('rgba.png', 'has transparency .*uchar, 4 channels'),
        ('la.png', 'has transparency'),
        ('palette-alpha.png', 'has transparency'),
        ('16bit.png', 'is not 8 bit .*ushort'),
        ('float.tif', 'is not 8 bit .*float'),
        ('cmyk.jpg', 'is neither RGB nor gray .*cmyk'),
        ('pages.tif', 'the file has 2 pages; expected a single image'),
        ('animation.webp', 'the file has 2 pages; expected a single image'),
        ('gif.png', 'the format of the file is gif; expected one of png, jpeg, webp, tiff, heif'),
        ('svg.png', 'the format of the file is svg'),
        ('empty.png', 'the file is empty'),
        ('text.jpg', 'not a complete, readable image'),
        ('truncated.png', 'not a complete, readable image'),
        ('truncated.jpg', 'not a complete, readable image'),
        ('truncated.tif', 'not a complete, readable image'),
        ('truncated.webp', 'not a complete, readable image'),
        ('missing/x.png', 'not a complete, readable image'),
    ],
)
def test_what_would_be_damaged_is_refused(kind: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / kind if 'missing' in kind else refused(kind, tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read_rgb8(path)
    assert str(caught.value).startswith(f'{path}: ')
    assert len(str(caught.value).splitlines()) == 1


def test_a_picture_of_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rgb8(tmp_path / 'x.tif', RGB)
    monkeypatch.setattr(read, 'MAX_PIXELS', 3499)
    with pytest.raises(InputError, match='70x50 are 3,500 pixels; at most 3,499 are allowed'):
        read_rgb8(tmp_path / 'x.tif')


def test_a_picture_too_large_for_its_format(tmp_path: Path) -> None:
    with pytest.raises(InputError, match='the image could not be written'):
        write_rgb8(tmp_path / 'x.webp', np.zeros((4, 20000, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_unknown_ending(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"file extension '.gif'.*expected one of .png, .jpg"):
        write_rgb8(tmp_path / 'x.gif', RGB)


def test_nothing_is_left_after_a_failed_write(tmp_path: Path, monkeypatch: Any) -> None:
    def fail(image: Any, name: str, **options: Any) -> None:
        Path(name).write_bytes(b'half')
        raise pyvips.Error('disk full')

    (tmp_path / 'x.png').write_bytes(b'old')
    monkeypatch.setattr(pyvips.Image, 'write_to_file', fail)
    with pytest.raises(InputError, match='disk full'):
        write_rgb8(tmp_path / 'x.png', RGB)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [('x.png', b'old')]
