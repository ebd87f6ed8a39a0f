"""`fmen-jax upscale`."""

import dataclasses
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tqdm
import tyro
from tyro.conf import Positional, arg

from fmen_jax.errors import InputError
from fmen_jax.files import sha256
from fmen_jax.images.read import MAX_PIXELS, count_pixels
from fmen_jax.images.write import SaveOptions
from fmen_jax.inference import jobs
from fmen_jax.inference.planning import Item, Naming, Shard, plan
from fmen_jax.inference.ray_jobs import run_on_ray
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.network import load
from fmen_jax.runtime.compilation import keep_compiled
from fmen_jax.weights.names import resolve_weights, shipped


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
    max_pixels: int = MAX_PIXELS,
    allow_nonfinite: bool = False,
    quality: int | None = None,
    compression: int | None = None,
    skip_existing: bool = False,
    manifest: Path | None = None,
    shard: str = '0/1',
    ray: int = 0,
    job: Path | None = None,
) -> int:
    """Upscale pictures: PNG, JPEG, WebP, AVIF and TIFF.

    8 and 16 bit and float, gray, RGB, palette and CMYK, with transparency. Large pictures are
    upscaled in tiles, with the same result as in one piece. Finished pictures are printed; one that
    fails is named, and the others are done.

    Args:
      pictures: Pictures, folders (searched recursively), patterns such as 'photos/*.png', or - for
        a list of names on standard input.
      output: A file, if it ends like a picture, or else a folder. If omitted, outputs are written
        next to the inputs.
      weights: Checkpoint (.pt, .pth or .safetensors), or the name of weights in the package or of
        published weights, which are downloaded when they are first used (`fmen-jax download
        --help` lists them). If omitted, the weights of the package for the scale.
      input: Pictures, as without an option.
      scale: Factor: 2, 3 or 4 with the weights of the package. If omitted, that of the weights,
        or 4.
      tile: Height and width of a tile in LR pixels; 0 for the whole picture; auto chooses by the
        available memory.
      tile_pad: Overlap of tiles in LR pixels. If omitted, as much as exact results need.
      suffix: Text appended to the names of outputs in a folder.
      ext: Format of outputs in a folder, such as png. If omitted, that of the input.
      engine: What computes; auto measures, once, which of the installed engines is the fastest.
      dtype: Precision of the computation.
      batch: Number of tiles computed at once.
      self_ensemble: Average over the eight flips and rotations, which takes eight times as long.
      max_pixels: Number of LR pixels above which a picture is refused; a damaged header may claim
        any size.
      allow_nonfinite: Accept weights with NaN or infinity, which are refused otherwise.
      quality: 1 to 100, for JPEG (default 95), AVIF (90) and WebP (lossless if omitted).
      compression: 0 to 9, for PNG.
      skip_existing: Skip outputs that already exist.
      manifest: File of JSON lines with the hashes of inputs and outputs; with it, a rerun does only
        what is missing or has changed.
      shard: Part of the work for this machine: 0/4 to 3/4 for four machines.
      ray: Number of workers on a Ray cluster, which is joined or started; 0 for none.
      job: Folder that records what a Ray job has done, for a rerun to resume.
    """
    keep_compiled()
    if weights is None and (weights := f'fmen_s_x{scale or 4}') not in shipped():
        scales = ', '.join(name.removeprefix('fmen_s_') for name in shipped())
        raise InputError(
            f'there are no weights for x{scale} in the package, only for {scales}: choose one of '
            'these scales, or name a checkpoint with --weights.'
        )
    network = load(weights, allow_nonfinite=allow_nonfinite)
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
            if max_pixels != MAX_PIXELS or allow_nonfinite:
                raise InputError('max-pixels and allow-nonfinite are not for jobs on Ray.')
            if not (ray > 0 and job) or manifest or skip_existing:
                raise InputError(
                    'ray and job go together, and without manifest and skip-existing: the job '
                    'folder keeps what was done.'
                )
            results = run_on_ray(
                items,
                resolve_weights(weights),
                workers=ray,
                job=job,
                settings=settings,
                options=dataclasses.asdict(options),
            )
        else:
            upscaler = Upscaler(network, **settings)
            if not upscaler.exact and tile != 0:
                bar.write('note: these tiles are not exact.', file=sys.stderr)
            made_with = f'{sha256(resolve_weights(weights))} {upscaler.settings} {options}'
            results = jobs.run(
                items,
                upscaler,
                options=options,
                manifest=jobs.Manifest(manifest, made_with),
                skip_existing=skip_existing,
                progress=bar.update,
                max_pixels=max_pixels,
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
                bar.write(f'{result.item.target}  already exists, skipped')
            else:
                sizes = ' -> '.join(f'{w}x{h}' for w, h in (result.size, result.new_size))
                bar.write(f'{result.item.target}  {sizes}')
    if failed:
        print(f'{failed} of {len(items)} pictures failed.', file=sys.stderr)
    return 1 if failed else 0


def _count_pixels(items: Sequence[Item], bar: tqdm.tqdm) -> dict[Item, int]:
    """Find out in the background how much there is to do, for the time that is left."""
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


def main(args: Sequence[str]) -> int:
    """Run the command; the exit code."""
    return tyro.cli(upscale, prog='fmen-jax upscale', args=args)
