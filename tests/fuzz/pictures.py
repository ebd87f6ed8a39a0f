"""Mutated image files: PNG, JPEG, WebP, TIFF and AVIF.

Each original is a small photograph with an ICC profile, EXIF with an orientation, and XMP where the
format has them. A mutation changes the bytes of a file, its header, its chunks or its metadata. A
case is opened, read to its end, upscaled by a tiny network and written, as `fmen-jax upscale` does.
"""

import contextlib
import functools
import io
import random
import re
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from PIL import Image, ImageCms, PngImagePlugin

from fmen_jax.errors import FMENWarning
from fmen_jax.inference import jobs
from fmen_jax.inference.planning import Item
from fmen_jax.inference.settings import InferenceSettings
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.initial import initial_variables
from fmen_jax.network import Network
from tests.fuzz.outcome import Case, Outcome

_BOUNDARIES = (0, 1, 2, 9, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
_SIDES = (0, 1, 30_000, 31_622, 65_535, 10**6, 10**9, 2**31 - 1)
"""Sides that a header may claim; 31,622 squared is just below the default limit of pixels."""

Mutation = Callable[[random.Random, bytes], bytes]


# --- The originals ------------------------------------------------------------------------------


@functools.cache
def originals() -> Mapping[str, bytes]:
    """Return the contents of the original files by name."""
    photo = skimage.data.astronaut()[100:124, 150:181]
    alpha = np.linspace(0, 255, photo[..., 0].size).reshape(*photo.shape[:2], 1).astype(np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, 'a maker'
    text = PngImagePlugin.PngInfo()
    text.add_itxt('XML:com.adobe.xmp', '<x:xmpmeta xmlns:x="adobe:ns:meta/"/>')
    text.add_text('Comment', 'a comment', zip=True)
    rgb, rgba = Image.fromarray(photo), Image.fromarray(np.concatenate([photo, alpha], 2))
    metadata: dict[str, Any] = {'icc_profile': profile, 'exif': exif}
    found = {}
    for name, image, options in (
        ('rgb.png', rgb, {**metadata, 'pnginfo': text}),
        ('rgba.png', rgba, {}),
        ('palette.png', rgb.quantize(16), {}),
        ('gray.png', rgb.convert('L'), {}),
        ('rgb.jpg', rgb, metadata),
        ('progressive.jpg', rgb, {'progressive': True, 'quality': 90}),
        ('cmyk.jpg', rgb.convert('CMYK'), {}),
        ('lossy.webp', rgb, metadata),
        ('lossless.webp', rgba, {'lossless': True}),
        ('plain.tif', rgb, {}),
        ('deflate.tif', rgba, {'compression': 'tiff_adobe_deflate', 'icc_profile': profile}),
        ('lzw.tif', rgb, {'compression': 'tiff_lzw'}),
        ('rgb.avif', rgb, metadata),
    ):
        file = io.BytesIO()
        kind = {'jpg': 'jpeg', 'tif': 'tiff'}.get(name[-3:], name.partition('.')[2])
        image.save(file, kind, **options)
        found[name] = file.getvalue()
    return found


# --- Mutations of any file ----------------------------------------------------------------------


def _flip_bits(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 4, 30))):
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _flip_in_header(draw: random.Random, data: bytes) -> bytes:
    return _flip_bits(draw, data[:100]) + data[100:]


def _truncate(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data))]


def _remove(draw: random.Random, data: bytes) -> bytes:
    start = draw.randrange(len(data))
    return data[:start] + data[start + draw.choice((1, 4, 100)) :]


def _insert(draw: random.Random, data: bytes) -> bytes:
    start = draw.randrange(len(data))
    return data[:start] + draw.randbytes(draw.choice((1, 4, 100))) + data[start:]


def _number(draw: random.Random, data: bytes) -> bytes:
    """Put a boundary value over 2 or 4 bytes, in either byte order."""
    form, bits = draw.choice((('<H', 16), ('>H', 16), ('<I', 32), ('>I', 32)))
    start = draw.randrange(len(data) - 4)
    number = struct.pack(form, draw.choice(_BOUNDARIES) % 2**bits)
    return data[:start] + number + data[start + len(number) :]


def _append(draw: random.Random, data: bytes) -> bytes:
    return data + draw.choice((draw.randbytes(1000), data, bytes(100_000)))


def _splice(draw: random.Random, data: bytes) -> bytes:
    """Continue a file with the end of another one."""
    other = draw.choice([*originals().values()])
    return data[: draw.randrange(len(data))] + other[draw.randrange(len(other)) :]


# --- Mutations of formats -----------------------------------------------------------------------


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the kinds and contents of the chunks of a PNG."""
    found, at = [], 8
    while at < len(data):
        (length,) = struct.unpack('>I', data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """Return a PNG of chunks, each with its correct checksum."""
    parts = [
        struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


def _png_claim(draw: random.Random, data: bytes) -> bytes:
    """Claim another size, depth or color type in the header, with a correct checksum."""
    (kind, header), *others = png_chunks(data)
    width, height, *rest = struct.unpack('>IIBBBBB', header)
    what = draw.randrange(4)
    if what == 0:
        width, height = draw.choice(_SIDES), draw.choice(_SIDES)
    elif what == 1:
        height = draw.choice(_SIDES)
    else:
        rest[what - 2] = draw.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
    return png([(kind, struct.pack('>IIBBBBB', width, height, *rest)), *others])


def _png_chunk(draw: random.Random, data: bytes) -> bytes:
    """Change, repeat, remove or move a chunk, with a correct checksum."""
    chunks = png_chunks(data)
    number = draw.randrange(len(chunks))
    kind, body = chunks[number]
    what = draw.choice(('contents', 'repeat', 'remove', 'move', 'kind'))
    if what == 'contents':
        chunks[number] = (kind, _flip_bits(draw, body) if body else b'x')
    elif what == 'repeat':
        chunks.insert(number, chunks[number])
    elif what == 'remove':
        del chunks[number]
    elif what == 'move':
        chunks.insert(draw.randrange(len(chunks)), chunks.pop(number))
    else:
        chunks[number] = (draw.choice((b'IDAT', b'PLTE', b'tRNS', b'iCCP', b'acTL', b'zzZz')), body)
    return png(chunks)


def _png_text(draw: random.Random, data: bytes) -> bytes:
    """Add a text chunk with a strange keyword or a compression bomb."""
    keyword = draw.choice(
        ('Ä'.encode('latin-1'), b'', b'\xff\xfe', b'k' * 200, b'XML:com.adobe.xmp')
    )
    bomb = zlib.compress(bytes(10**8)) if draw.random() < 0.1 else zlib.compress(b'text')
    kind, body = draw.choice(
        (
            (b'tEXt', keyword + b'\0' + draw.randbytes(20)),
            (b'zTXt', keyword + b'\0\0' + bomb),
            (b'iTXt', keyword + b'\0\1\0\0\0' + bomb),
            (b'iCCP', keyword + b'\0\0' + bomb),
        )
    )
    header, *others = png_chunks(data)
    return png([header, (kind, body), *others])


def _jpeg_claim(draw: random.Random, data: bytes) -> bytes:
    """Claim another size in the frame header."""
    frame = re.search(rb'\xff[\xc0-\xc2]\0.\x08', data, re.DOTALL)
    assert frame
    sides = [draw.choice([side for side in _SIDES if side < 2**16]) for _ in range(2)]
    return data[: frame.end()] + struct.pack('>HH', *sides) + data[frame.end() + 4 :]


def _webp_claim(draw: random.Random, data: bytes) -> bytes:
    """Claim another size of the canvas or of the stream."""
    start = 24 if data[12:16] == b'VP8X' else data.index(b'VP8') + 9
    length = draw.choice((3, 6))
    return data[:start] + draw.randbytes(length) + data[start + length :]


def _tiff_field(draw: random.Random, data: bytes) -> bytes:
    """Change the type, the count or the value of a field of the directory."""
    (start,) = struct.unpack('<I', data[4:8])
    (count,) = struct.unpack('<H', data[start : start + 2])
    field = start + 2 + 12 * draw.randrange(count)
    form, offset, values = draw.choice(
        (
            ('<H', 2, range(20)),
            ('<I', 4, _BOUNDARIES),
            ('<I', 8, _BOUNDARIES),
            ('<I', 8, _SIDES),
        )
    )
    value = struct.pack(form, draw.choice(values))
    at = field + offset
    return data[:at] + value + data[at + len(value) :]


def _tiff_claim(draw: random.Random, data: bytes) -> bytes:
    """Claim another size, in one strip or in the strips of before."""
    (start,) = struct.unpack('<I', data[4:8])
    (count,) = struct.unpack('<H', data[start : start + 2])
    changed = bytearray(data)
    tags = draw.choice(((256, 257), (257,), (256, 257, 278)))
    for field in range(start + 2, start + 2 + 12 * count, 12):
        (tag,) = struct.unpack('<H', data[field : field + 2])
        if tag in tags:
            changed[field + 2 : field + 12] = struct.pack('<HII', 4, 1, draw.choice(_SIDES))
    return bytes(changed)


def _avif_box(draw: random.Random, data: bytes) -> bytes:
    """Change the contents of a box, or its claim of a size."""
    boxes = [m.start() for m in re.finditer(rb'ftyp|meta|ispe|pixi|av1C|colr|irot|iloc|iprp', data)]
    box = draw.choice(boxes)
    if data[box : box + 4] == b'ispe':
        sides = struct.pack('>II', draw.choice(_SIDES), draw.choice(_SIDES))
        return data[: box + 8] + sides + data[box + 16 :]
    start = box + draw.randrange(-4, 24)
    value = struct.pack('>I', draw.choice(_BOUNDARIES))
    return data[:start] + value + data[start + 4 :]


def _metadata(draw: random.Random, data: bytes) -> bytes:
    """Damage EXIF, XMP or the ICC profile where they are."""
    marks = [m.end() for m in re.finditer(rb'Exif|EXIF|eXIf|xmpmeta|acsp|ICC_PROFILE|iCCP', data)]
    if not marks:
        return _flip_bits(draw, data)
    start = draw.choice(marks) + draw.randrange(60)
    return data[:start] + draw.randbytes(draw.choice((1, 2, 8))) + data[start + 8 :]


def _orientation(draw: random.Random, data: bytes) -> bytes:
    """Give the orientation another value, valid or not."""
    found = re.search(rb'\x12\x01\x03\0|\x01\x12\0\x03', data)
    if not found:
        return _number(draw, data)
    order = '<' if data[found.start()] == 0x12 else '>'
    at = found.end() + 4
    value = struct.pack(f'{order}H', draw.choice((0, 1, 3, 5, 8, 9, 255, 65535)))
    return data[:at] + value + data[at + 2 :]


MUTATIONS: Mapping[str, tuple[Mutation, str]] = {
    'bits': (_flip_bits, ''),
    'header': (_flip_in_header, ''),
    'truncated': (_truncate, ''),
    'removed': (_remove, ''),
    'inserted': (_insert, ''),
    'number': (_number, ''),
    'appended': (_append, ''),
    'spliced': (_splice, ''),
    'metadata': (_metadata, ''),
    'orientation': (_orientation, ''),
    'png claim': (_png_claim, '.png'),
    'png chunk': (_png_chunk, '.png'),
    'png text': (_png_text, '.png'),
    'jpeg claim': (_jpeg_claim, '.jpg'),
    'webp claim': (_webp_claim, '.webp'),
    'tiff field': (_tiff_field, '.tif'),
    'tiff claim': (_tiff_claim, '.tif'),
    'avif box': (_avif_box, '.avif'),
}
"""Mutations by name, each with the extension of its format, or '' for all."""


# --- Cases --------------------------------------------------------------------------------------


def cases(seed: int, count: int) -> Iterator[Case]:
    """Yield mutated files; the same seed gives the same files."""
    for number in range(count):
        draw = random.Random(f'{seed} {number}')
        name = draw.choice([*originals()])
        suffix = Path(name).suffix
        kind = draw.choice([k for k, (_, format_) in MUTATIONS.items() if format_ in ('', suffix)])
        yield Case(f'{name}/{kind} {number}', MUTATIONS[kind][0](draw, originals()[name]), suffix)


@functools.cache
def _upscaler() -> Upscaler:
    config = FMENConfig(scale=2, n_feats=4, mid_feats=5, down_blocks=0, up_blocks=(0,))
    network = Network(config, 'deploy', initial_variables(config, 'deploy'))
    # tiles of one shape, so that a picture of another size need not be compiled anew
    return Upscaler(network, InferenceSettings(tile=48, tile_pad=4))


@functools.cache
def _expected(name: str) -> bytes:
    return _upscaled(originals()[name], Path(name).suffix)


class _RefusedError(Exception):
    """One clear error of a job."""


def _upscaled(data: bytes, suffix: str) -> bytes:
    """Return what a job writes for a file, as the size and pixels of a TIFF."""
    import pyvips

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / f'a{suffix}', Path(folder) / 'out.tif'
        source.write_bytes(data)
        (result,) = jobs.run([Item(source, target)], _upscaler(), max_pixels=10**9)
        left = sorted(path.name for path in Path(folder).iterdir())
        if result.error:
            if left != [source.name]:
                raise AssertionError(f'left after an error: {left}')
            if str(folder) not in result.error or len(result.error.splitlines()) != 1:
                raise AssertionError(f'not one clear error: {result.error}')
            if re.search(r': \w+(Error|Exception): ', result.error):
                raise AssertionError(f'an unexpected exception: {result.error}')
            raise _RefusedError(result.error.replace(folder, ''))
        if left != sorted([source.name, target.name]):
            raise AssertionError(f'left after a success: {left}')
        image: Any = pyvips.Image.new_from_file(str(target), fail_on='error')
        return f'{image.width} {image.height} {image.bands} '.encode() + image.write_to_memory()


_UNDETECTABLE = {
    '.png': 'chunks with correct checksums make a valid PNG with other contents',
    '.jpg': 'JPEG has no checksum, and the file can be decoded',
    '.webp': 'WebP has no checksum, and the file can be decoded',
    '.tif': 'TIFF has no checksum, and the file can be decoded',
    '.avif': 'AVIF has no checksum, and the file can be decoded',
}


def run(case: Case | None) -> Outcome:
    """Upscale a case. None upscales the originals."""
    if case is None:
        for name in originals():
            _expected(name)
        return Outcome('equal', '')
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter('error')
        warnings.simplefilter('ignore', FMENWarning)
        try:
            found = _upscaled(case.data, case.suffix)
        except _RefusedError as error:
            return Outcome('error', str(error)[:200])
        except BaseException as error:
            return Outcome('failed', f'{type(error).__name__}: {str(error)[:300]}')
    if found == _expected(case.name.partition('/')[0]):
        return Outcome('equal', '')
    return Outcome('different', _UNDETECTABLE[case.suffix])
