"""Verbs for those who have pictures and checkpoints: upscale, info, download."""

import dataclasses
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from fmen_jax.download import PUBLISHED
from fmen_jax.errors import InputError
from fmen_jax.files import sha256

if TYPE_CHECKING:
    import tqdm

    from fmen_jax.inference.plan import Item


def upscale(
    pictures: Positional[list[str]],
    *,
    output: Annotated[Path | None, arg(aliases=['-o'])] = None,
    weights: Annotated[str | None, arg(aliases=['-w', '-n', '--model-name'])] = None,
    input: Annotated[list[str], arg(aliases=['-i'])] = [],  # noqa: A002, B006 - as others name it
    scale: Annotated[int | None, arg(aliases=['-s'])] = None,
    tile: Annotated[Literal['auto'] | int, arg(aliases=['-t'])] = 'auto',
    tile_pad: int | None = None,
    suffix: str = '_x{scale}',
    ext: str = '',
    engine: Literal['auto', 'xla', 'onnxruntime', 'openvino'] = 'auto',
    dtype: Literal['float32', 'bfloat16'] = 'float32',
    batch: int = 1,
    self_ensemble: bool = False,
    quality: int | None = None,
    compression: int | None = None,
    skip_existing: bool = False,
    manifest: Path | None = None,
    shard: str = '0/1',
    ray: int = 0,
    job: Path | None = None,
) -> int:
    """Upscale pictures: 8 and 16 bit and float, gray, RGB, palette, CMYK, with transparency.

    PNG, JPEG, WebP, AVIF and TIFF. Tiles give the very pixels of the whole picture.

    Args:
      pictures: Pictures, folders (with those inside), patterns such as 'photos/*.png', or - for a
        list of names on standard input.
      output: A file if it ends like a picture, else a folder; without it pictures go beside their
        originals, with the suffix.
      weights: By default those of the package for the scale. Else a checkpoint (.pt, .pth,
        .safetensors), or the name of published weights, which are downloaded at their first use:
        see `fmen-jax download --help`.
      input: The same as naming pictures without an option.
      scale: The factor: 2, 3 or 4 with the weights of the package, 4 if nothing is said.
      tile: Height and width of a tile in LR pixels, 0 for none, auto by the memory at hand.
      tile_pad: Halo of a tile; by default as large as it must be for exact results.
      suffix: Put behind the names of outputs in a folder.
      ext: Ending of outputs in a folder, such as png; by default that of the input.
      engine: What computes; auto is the fastest one installed on a CPU, and xla elsewhere.
      dtype: What it computes in.
      batch: Tiles that are computed at once.
      self_ensemble: The mean over the eight flips and turns: eight times the work.
      quality: 1 to 100, for JPEG (95), AVIF (90) and WebP (lossless if not given).
      compression: 0 to 9, for PNG.
      skip_existing: Leave outputs that are there, whatever made them.
      manifest: JSON lines with hashes of what was made; a rerun does only what is missing.
      shard: 0/4 ... 3/4, for four machines that share the work.
      ray: Workers on the Ray cluster at hand, or on one that is started here; 0 for none.
      job: With ray: a folder for what was done, which a rerun goes on from.
    """
    import tqdm

    from fmen_jax import pretrained
    from fmen_jax.inference import jobs
    from fmen_jax.inference.cluster import run_on_ray
    from fmen_jax.inference.plan import Naming, Shard, plan
    from fmen_jax.inference.upscaler import Upscaler
    from fmen_jax.inference.writing import SaveOptions
    from fmen_jax.runtime.compilation import keep_compiled

    keep_compiled()
    weights = weights or f'fmen_s_x{scale or 4}'
    network = pretrained.load(weights)
    if scale not in (None, network.config.scale):
        raise InputError(f'{weights} is x{network.config.scale}, but x{scale} is asked for.')
    inputs = [name for given in (*pictures, *input) for name in _names(given)]
    items = plan(
        inputs,
        output,
        scale=network.config.scale,
        naming=Naming(suffix, ext),
        shard=Shard.parse(shard),
    )
    settings: dict[str, Any] = {
        'engine': engine,
        'dtype': dtype,
        'tile': None if tile == 'auto' else tile,
        'tile_pad': tile_pad,
        'batch': batch,
        'self_ensemble': self_ensemble,
    }
    options = SaveOptions(quality, compression)
    failed = 0
    with tqdm.tqdm(unit='pixel', unit_scale=True, disable=None, file=sys.stderr) as bar:
        if ray or job:
            if not (ray > 0 and job) or manifest or skip_existing:
                raise InputError(
                    'ray and job go together, and without manifest and skip-existing: the job '
                    'folder keeps what was done.'
                )
            results = run_on_ray(
                items,
                pretrained.find(weights),
                workers=ray,
                job=job,
                settings=settings,
                options=dataclasses.asdict(options),
            )
        else:
            upscaler = Upscaler(network, **settings)
            if not upscaler.exact and tile != 0:
                bar.write('note: these tiles are not exact.', file=sys.stderr)
            made_with = f'{sha256(pretrained.find(weights))} {upscaler.settings} {options}'
            results = jobs.run(
                items,
                upscaler,
                options=options,
                manifest=jobs.Manifest(manifest, made_with),
                skip_existing=skip_existing,
                progress=bar.update,
            )
        pixels = _count_pixels(items, bar)
        for result in results:
            if result.error or result.skipped:
                left_out = pixels.get(result.item, 0)
                pixels[result.item] = 0
                bar.total = bar.total and max(bar.total - left_out, bar.n)
            if result.error:
                failed += 1
                bar.write(f'error: {result.error}', file=sys.stderr)
            elif result.skipped:
                bar.write(f'{result.item.target}  is there')
            else:
                sizes = ' -> '.join(f'{w}x{h}' for w, h in (result.size, result.new_size))
                bar.write(f'{result.item.target}  {sizes}')
    if failed:
        print(f'{failed} of {len(items)} pictures failed.', file=sys.stderr)
    return 1 if failed else 0


def _count_pixels(items: 'Sequence[Item]', bar: 'tqdm.tqdm') -> dict['Item', int]:
    """Find out in the background how much there is to do, for the time that is left."""
    from fmen_jax.inference.images import count_pixels

    pixels: dict[Item, int] = {}

    def count() -> None:
        for item in items:
            if item not in pixels:  # one that is left out is there already, with 0
                pixels[item] = count_pixels(item.source)
        bar.total = sum(pixels.values())

    if not bar.disable:
        threading.Thread(target=count, daemon=True).start()
    return pixels


def _names(given: str) -> list[str]:
    """An input, or the lines of standard input for -."""
    return [line for line in sys.stdin.read().splitlines() if line] if given == '-' else [given]


def info(file: Positional[str]) -> int:
    """Describe a checkpoint: its network, found in key names and shapes, and its cost.

    Args:
      file: A checkpoint (.pt, .pth, .safetensors), or the name of published weights.
    """
    from fmen_jax import pretrained

    print(pretrained.describe(file))
    return 0


def download(
    name: Positional[Literal[tuple(PUBLISHED)]],  # pyright: ignore[reportInvalidTypeForm]
    url: str | None = None,
) -> int:
    """Download published weights to the cache, checked by SHA-256; an interrupted one goes on.

    Args:
      name: Which.
      url: Another address of the same file, such as a mirror.
    """
    import tqdm

    from fmen_jax.download import download

    with tqdm.tqdm(unit='B', unit_scale=True, desc=name, leave=False) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total or None
            bar.update(done - bar.n)

        path = download(name, url=url, report=report)
    print(path)
    return 0
