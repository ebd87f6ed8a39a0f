"""`fmen-jax upscale`."""

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tqdm
import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from fmen_jax.errors import InputError, check_range
from fmen_jax.files import sha256
from fmen_jax.images.read import MAX_PIXELS, count_pixels
from fmen_jax.images.write import SaveOptions
from fmen_jax.inference import jobs
from fmen_jax.inference.planning import Item, Naming, Shard, plan
from fmen_jax.inference.ray_jobs import run_on_ray
from fmen_jax.inference.settings import InferenceSettings
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.network import load
from fmen_jax.runtime.compilation import keep_compiled
from fmen_jax.weights.names import resolve_weights, shipped

_SETTINGS = InferenceSettings(engine='auto')


def upscale(
    pictures: Positional[list[str]],
    *,
    output: Annotated[Path | None, arg(aliases=['-o'])] = None,
    weights: Annotated[str | None, arg(aliases=['-w', '-n', '--model-name'])] = None,
    input: Annotated[list[str], arg(aliases=['-i'])] = [],  # noqa: A002, B006 - as others name it
    scale: Annotated[int | None, arg(aliases=['-s'])] = None,
    naming: Annotated[Naming, OmitArgPrefixes] = Naming(),  # noqa: B008 - frozen
    inference: Annotated[InferenceSettings, OmitArgPrefixes] = _SETTINGS,
    saving: Annotated[SaveOptions, OmitArgPrefixes] = SaveOptions(),  # noqa: B008 - frozen
    max_pixels: int = MAX_PIXELS,
    allow_nonfinite: bool = False,
    skip_existing: bool = False,
    manifest: Path | None = None,
    shard: str = '0/1',
    ray: int = 0,
    job: Path | None = None,
) -> int:
    """Upscale pictures: PNG, JPEG, WebP, AVIF and TIFF.

    Reads 8 and 16 bit and float, gray, RGB, palette and CMYK, with or without transparency. Large
    pictures are upscaled in tiles, with the same result as in one piece. The name of each output is
    printed when it is finished. If a picture fails, its error is printed, and the others are done.

    Args:
      pictures: Pictures, folders (searched recursively), patterns such as 'photos/*.png', or - for
        a list of names on standard input.
      output: A file, if it has the file extension of an image, or else a folder. If omitted,
        outputs are written next to the inputs.
      weights: Checkpoint (.pt, .pth or .safetensors), or the name of weights in the package or of
        published weights, which are downloaded when they are first used (`fmen-jax download
        --help` lists them). If omitted, the weights of the package for the scale.
      input: Pictures, as without an option.
      scale: Factor: 2, 3 or 4 with the weights of the package. If omitted, that of the weights,
        or 4.
      naming: Names of the outputs.
      inference: How the network is run.
      saving: How the outputs are compressed.
      max_pixels: Number of LR pixels above which a picture is refused; a damaged header may claim
        any size.
      allow_nonfinite: Accept weights with NaN or infinity, which are refused otherwise.
      skip_existing: Skip outputs that already exist.
      manifest: File of JSON lines with the hashes of inputs and outputs; with it, a rerun does only
        what is missing or has changed.
      shard: Part of the work for this machine: 0/4 to 3/4 for four machines.
      ray: Number of workers on a Ray cluster, which is joined or started; 0 for none.
      job: Folder that records what a Ray job has done, for a rerun to resume.
    """
    check_range('max-pixels', max_pixels, least=1)
    keep_compiled()
    if weights is None and (weights := f'fmen_s_x{scale or 4}') not in shipped():
        scales = ', '.join(name.removeprefix('fmen_s_') for name in shipped())
        raise InputError(
            f'there are no weights for x{scale} in the package, only for {scales}: choose one of '
            'these scales, or name a checkpoint with --weights.'
        )
    network = load(weights, allow_nonfinite=allow_nonfinite)
    if scale not in (None, network.config.scale):
        raise InputError(
            f'the weights {weights} are for x{network.config.scale}, but scale is {scale}: omit '
            'scale, or choose other weights.'
        )
    inputs = [name for given in (*pictures, *input) for name in _names(given)]
    items = plan(
        inputs,
        output,
        scale=network.config.scale,
        naming=naming,
        shard=Shard.parse(shard),
    )
    failed = 0
    with tqdm.tqdm(unit='pixel', unit_scale=True, disable=None, file=sys.stderr) as bar:
        if ray or job:
            if max_pixels != MAX_PIXELS or allow_nonfinite:
                raise InputError(
                    'jobs on Ray do not support max-pixels and allow-nonfinite: omit them, or '
                    'upscale without ray and job.'
                )
            if not (ray > 0 and job) or manifest or skip_existing:
                raise InputError(
                    'a job on Ray needs both ray and job, and supports neither manifest nor '
                    'skip-existing: the job folder records what was done.'
                )
            results = run_on_ray(
                items,
                resolve_weights(weights),
                workers=ray,
                job=job,
                settings=inference,
                options=saving,
            )
        else:
            upscaler = Upscaler(network, inference)
            if not upscaler.exact and inference.tile != 0:
                bar.write('note: these tiles are not exact.', file=sys.stderr)
            made_with = f'{sha256(resolve_weights(weights))} {upscaler.fingerprint} {saving}'
            results = jobs.run(
                items,
                upscaler,
                options=saving,
                manifest=jobs.Manifest(manifest, made_with) if manifest else None,
                skip_existing=skip_existing,
                progress=bar.update,
                max_pixels=max_pixels,
            )
        pixels = _count_pixels(items, bar, max_pixels)
        for result in results:
            if result.error or result.skipped:
                not_done = pixels.get(result.item, 0)
                pixels[result.item] = 0
                bar.total = bar.total and max(bar.total - not_done, bar.n)
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


def _count_pixels(items: Sequence[Item], bar: tqdm.tqdm, max_pixels: int) -> dict[Item, int]:
    """Count the pixels of all pictures in the background, for the estimate of the time left."""
    pixels: dict[Item, int] = {}

    def count() -> None:
        for item in items:
            if item not in pixels:  # one that failed or was skipped has 0 already
                claimed = count_pixels(item.source)
                pixels[item] = claimed if claimed <= max_pixels else 0
        bar.total = sum([*pixels.values()])  # a copy, because the job changes the values meanwhile

    if not bar.disable:
        threading.Thread(target=count, daemon=True).start()
    return pixels


def _names(given: str) -> list[str]:
    """Return an input as it is, or the lines of standard input for -."""
    return [line for line in sys.stdin.read().splitlines() if line] if given == '-' else [given]


def main(args: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    return tyro.cli(upscale, prog='fmen-jax upscale', args=args)
