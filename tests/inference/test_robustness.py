"""One bad picture is reported and costs little; the others are upscaled."""

import contextlib
import os
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
from PIL import Image, PngImagePlugin

from fmen_jax.errors import FMENWarning, InputError
from fmen_jax.images import write
from fmen_jax.images.read import open_picture
from fmen_jax.images.write import SaveOptions, Writer
from fmen_jax.inference import jobs
from fmen_jax.inference.planning import Item
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.network import load
from tests.helpers import PHOTO, run_cli, save


def png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with nearly no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        )

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b'')
    return (
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', data) + chunk(b'IEND', b'')
    )


@pytest.fixture
def upscaler(weights: Path) -> Upscaler:
    return Upscaler(load(weights))


def results(folder: Path, names: list[str], upscaler: Upscaler, **options: Any) -> list[Any]:
    items = [Item(folder / name, folder / 'out' / name) for name in names]
    return sorted(jobs.run(items, upscaler, **options), key=lambda result: result.item.source)


def test_a_text_chunk_with_a_keyword_that_is_not_ascii(tmp_path: Path, upscaler: Upscaler) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt('Ä', 'text')
    Image.fromarray(PHOTO).save(tmp_path / 'a.png', pnginfo=info)
    save(tmp_path / 'b.png', PHOTO)
    with pytest.warns(FMENWarning, match=r'a.png: metadata .* not UTF-8 was dropped'):
        first, second = results(tmp_path, ['a.png', 'b.png'], upscaler)
    assert (first.error, second.error) == ('', '')
    a, b = (pyvips.Image.new_from_file(str(tmp_path / f'out/{n}.png')).numpy() for n in 'ab')
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    'size',
    [(1, 2**31 - 1), (2**31 - 1, 1), (60_000, 60_000), (1, 10**9), (10**9, 1), (31_000, 31_000)],
)
def test_a_header_that_claims_a_huge_size(
    size: tuple[int, int], tmp_path: Path, upscaler: Upscaler
) -> None:
    (tmp_path / 'a.png').write_bytes(png(*size))
    save(tmp_path / 'b.png', PHOTO)
    first, second = results(tmp_path, ['a.png', 'b.png'], upscaler)
    assert 'a.png' in first.error
    assert not second.error
    assert not (tmp_path / 'out/a.png').exists()


def test_the_limit_of_pixels_can_be_set(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / 'a.png', PHOTO[:20, :30])
    with pytest.raises(InputError, match=r'30x20 are 600 pixels; at most 599 are allowed'):
        open_picture(tmp_path / 'a.png', max_pixels=599)
    assert open_picture(tmp_path / 'a.png', max_pixels=600).size == (30, 20)
    command = ('upscale', tmp_path / 'a.png', '-w', weights, '-o', tmp_path / 'out.png')
    assert run_cli(*command, '--max-pixels', 599) == 1
    assert 'raise max-pixels' in capsys.readouterr().err
    assert run_cli(*command, '--max-pixels', 600) == 0
    for number in (0, -1):
        assert run_cli(*command, '--max-pixels', number) == 2
        assert f'max-pixels is {number}; expected 1 or more' in capsys.readouterr().err


def test_tall_outputs_wait_on_disk_with_a_small_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pixel wide: a table of one strip for each row would be larger than the pixels."""
    save(
        tmp_path / 'a.png',
        np.arange(30_000, dtype=np.uint32).view(np.uint8)[:90_000].reshape(-1, 1, 3),
    )
    opened = open_picture(tmp_path / 'a.png')
    pixels = opened.rows.read(0, opened.rows.height)
    files = []
    real = tempfile.TemporaryFile
    monkeypatch.setattr(
        write.tempfile, 'TemporaryFile', lambda **o: files.append(real(**o)) or files[-1]
    )
    monkeypatch.setattr(write, '_IN_MEMORY', 0)
    writer = Writer(tmp_path / 'b.png', opened, 1, SaveOptions())
    with contextlib.closing(writer):
        writer.add(pixels)
        # nothing has a name that a killed process could leave behind
        assert [path.name for path in tmp_path.iterdir()] == ['a.png']
        assert os.fstat(files[0].fileno()).st_size < 1.1 * pixels.nbytes
        writer.save()
    back = open_picture(tmp_path / 'b.png').rows.read(0, 30_000)
    np.testing.assert_array_equal(back, pixels)


def test_an_unexpected_exception_of_one_picture_is_reported(
    tmp_path: Path, upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ('a.png', 'b.png', 'c.png'):
        save(tmp_path / name, PHOTO)
    real = open_picture

    def odd(path: Path, **options: Any) -> Any:
        if path.name == 'b.png':
            raise ZeroDivisionError('odd')
        return real(path, **options)

    monkeypatch.setattr(jobs, 'open_picture', odd)
    first, second, third = results(tmp_path, ['a.png', 'b.png', 'c.png'], upscaler)
    assert (first.error, third.error) == ('', '')
    assert second.error == f'{tmp_path / "b.png"}: ZeroDivisionError: odd'


def test_an_unexpected_exception_while_computing_is_the_error_of_its_picture(
    tmp_path: Path, upscaler: Upscaler
) -> None:
    for name in ('a.png', 'b.png', 'c.png'):
        save(tmp_path / name, PHOTO)
    real, calls = upscaler.engine, []

    class SecondFails:
        name = 'second fails'

        def __call__(self, x: np.ndarray) -> np.ndarray:
            calls.append(x.shape)
            if len(calls) == 2:
                raise ZeroDivisionError('odd')
            return real(x)

    upscaler.engine = SecondFails()
    first, second, third = results(tmp_path, ['a.png', 'b.png', 'c.png'], upscaler)
    assert (first.error, third.error) == ('', '')
    assert second.error == f'{tmp_path / "b.png"}: ZeroDivisionError: odd'
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['a.png', 'c.png']


def test_ctrl_c_ends_the_job_between_two_windows(tmp_path: Path, upscaler: Upscaler) -> None:
    for name in ('a.png', 'b.png', 'c.png'):
        save(tmp_path / name, PHOTO)
    real, calls = upscaler.engine, []

    class Interrupted:
        name = 'interrupted'

        def __call__(self, x: np.ndarray) -> np.ndarray:
            calls.append(x.shape)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return real(x)

    upscaler.engine = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        results(tmp_path, ['a.png', 'b.png', 'c.png'], upscaler)
    assert len(calls) == 2
    left = {path.name for path in (tmp_path / 'out').glob('*')}
    assert left <= {'a.png'}  # the first may be written already
