"""Upscaling of files: a folder of photographs versus a plain PyTorch loop, and very large TIFFs."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
import skimage.data
from PIL import Image

from benchmarks import contenders, peak
from benchmarks.turns import in_turn, ratio, rows
from fmen_jax.inference import jobs
from fmen_jax.inference.planning import plan
from fmen_jax.inference.settings import InferenceSettings
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.initial import initial_variables
from fmen_jax.network import Network


def _pictures(folder: Path, count: int) -> None:
    folder.mkdir()
    photo = np.tile(skimage.data.astronaut(), (1, 2, 1))
    for number in range(count):
        Image.fromarray(photo[number : number + 180, number : number + 320]).save(
            folder / f'{number:02}.png'
        )


def _loop(run: contenders.Contender, folder: Path, out: Path) -> Callable[[], None]:
    """Return a hand-written loop that reads, computes and writes one file after the other."""

    def call() -> None:
        out.mkdir(exist_ok=True)
        for path in sorted(folder.iterdir()):
            x = np.asarray(Image.open(path).convert('RGB'), np.float32)[None]
            y = np.clip(np.rint(run(x)[0]), 0, 255).astype(np.uint8)
            Image.fromarray(y).save(out / path.name)

    return call


def _job(upscaler: Upscaler, folder: Path, out: Path) -> Callable[[], None]:
    def call() -> None:
        for result in jobs.run(plan([folder], out, scale=4), upscaler):
            assert not result.error, result.error

    return call


def _large(folder: Path, width: int, height: int) -> dict[str, Any]:
    """Upscale a TIFF x2 by the command line, with a network small enough to finish."""
    config = FMENConfig(scale=2, n_feats=4, mid_feats=5, down_blocks=0, up_blocks=(0,))
    weights, picture = folder / 'small.safetensors', folder / f'{height}.tif'
    Network(config, 'deploy', initial_variables(config, 'deploy')).save(weights)
    photo = pyvips.Image.new_from_array(skimage.data.astronaut())
    photo.replicate(-(-width // 512), -(-height // 512)).crop(0, 0, width, height).tiffsave(
        str(picture), bigtiff=True
    )
    out = folder / f'{height}_x2.tif'
    command = [sys.executable, '-m', 'fmen_jax', 'upscale', str(picture), '-o', str(out)]
    # The tile size is fixed, because with auto it depends on the available memory.
    command += ['-w', str(weights), '--engine', 'xla', '--tile', '1024']
    start = time.perf_counter()
    own = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'}  # set by the benchmark
    process = subprocess.Popen(command, cwd=Path(__file__).parent.parent, env=own)
    highest = 0
    while process.poll() is None:
        with contextlib.suppress(OSError, IndexError):  # the process may end during the query
            highest = max(highest, peak.resident(process.pid))
        time.sleep(0.1)
    assert process.returncode == 0
    made = pyvips.Image.new_from_file(str(out))
    assert (made.width, made.height) == (2 * width, 2 * height)
    picture.unlink()
    out.unlink()
    return {
        'contender': f'ours, {width}x{height} TIFF x2',
        'seconds': time.perf_counter() - start,
        'peak_bytes': highest,
    }


def measure(*, quick: bool) -> dict[str, Any]:
    """Return rows of times and a summary of the most important ratios."""
    count = 2 if quick else 24
    net = contenders.network()
    auto = Upscaler(net, InferenceSettings(engine='auto'))
    torch = contenders.of_torch(net, channels_last=True)
    with tempfile.TemporaryDirectory(dir='.') as name:
        folder = Path(name)
        pictures = folder / 'in'
        _pictures(pictures, count)
        times = in_turn(
            {
                'ours, auto': _job(auto, pictures, folder / 'auto'),
                'ours, xla': _job(Upscaler(net), pictures, folder / 'xla'),
                'ours, auto, by a plain loop': _loop(auto.engine, pictures, folder / 'a'),
                'torch, channels_last, by a plain loop': _loop(torch, pictures, folder / 't'),
            },
            1 if quick else 3,
        )
        size = (1500, 1000) if quick else (20_000, 10_000)
        large = [_large(folder, *size), _large(folder, size[0], 2 * size[1])]
    found = [r | {'files_per_second': count / r['seconds']} for r in rows(times)]
    return {
        'rows': found + large,
        'summary': {
            'auto_vs_torch_loop': ratio(
                times, 'torch, channels_last, by a plain loop', 'ours, auto'
            ),
            'auto_vs_own_loop': ratio(times, 'ours, auto, by a plain loop', 'ours, auto'),
            'large_peak_bytes': large[0]['peak_bytes'],
            'peak_at_twice_the_height': large[1]['peak_bytes'] / large[0]['peak_bytes'],
        },
    }
