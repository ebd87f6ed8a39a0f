"""SIGKILL at random moments over `upscale`, `prepare` and `train`, each followed by a rerun.

After a kill, every file that has its final name must be complete. After the rerun, all files must
be those of an undisturbed run, byte for byte, and no temporary file may be left.

Commands run in processes that are forked from one that has imported everything, so that the kills
hit the work instead of the imports.
"""

import collections
import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import skimage.data

from fmen_jax import porting
from fmen_jax.cli import main
from tests.helpers import ROOT, Golden, save

_PRELOAD = ['fmen_jax.cli.train', 'fmen_jax.cli.upscale', 'fmen_jax.cli.prepare', __name__]

_TRAIN = (
    *('--model.n-feats', '5', '--model.mid-feats', '5', '--model.down-blocks', '0'),
    *('--model.up-blocks', '0', '--pipeline.batch', '4', '--step.ema-decay', '0.9'),
    *('--loop.steps', '6', '--loop.log-every', '1', '--loop.validate-every', '3'),
    *('--loop.checkpoint-every', '1'),
)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command, and what it writes into its folder."""

    name: str
    args: Callable[[Path], list[str]]
    """Arguments of fmen-jax, given the folder for everything that the command writes."""
    contents: Callable[[Path], dict[str, Any]]
    """The files with final names in the folder, without what differs from run to run."""


def report(seed: int, count: int) -> dict[str, Any]:
    """Kill commands `count` times; return how many kills were survived, and what failed."""
    survived: collections.Counter[str] = collections.Counter()
    failed: dict[str, str] = {}
    missed = 0
    with tempfile.TemporaryDirectory(prefix='fmen_jax_kills') as name, _cache(Path(name) / 'cache'):
        context = multiprocessing.get_context('forkserver')
        context.set_forkserver_preload(_PRELOAD)
        expected = {
            command: _undisturbed(context, command, Path(name) / command.name)
            for command in _commands(Path(name))
        }
        draw = random.Random(seed)
        number = 0
        while number < count:
            command = list(expected)[number % len(expected)]
            contents, seconds = expected[command]
            folder = Path(name) / f'{command.name}_{number}'
            moment = draw.uniform(0, seconds)
            fault = _kill_once(context, command, folder, moment, contents)
            shutil.rmtree(folder, ignore_errors=True)
            if fault is None:  # the command had ended before
                missed += 1
                assert missed <= count, 'commands end before they are killed'
                continue
            number += 1
            survived[command.name] += not fault
            if fault:
                failed[f'{command.name} {number} at {moment:.2f} s'] = fault
    durations = {command.name: round(seconds, 2) for command, (_, seconds) in expected.items()}
    return {
        'kills': count,
        'survived': dict(survived),
        'failed': failed,
        'ended_before_the_kill': missed,
        'seconds_undisturbed': durations,
    }


def _kill_once(
    context: ForkServerContext,
    command: Command,
    folder: Path,
    moment: float,
    expected: dict[str, Any],
) -> str | None:
    """Kill a command once and run it again; return what is wrong, or None if it was too late."""
    process = _start(context, command, folder)
    process.join(moment)
    process.kill()
    process.join()
    if process.exitcode == 0:
        return None
    half = [name for name, content in command.contents(folder).items() if content != expected[name]]
    # Logs grow, so that only the files that are written once can be compared now.
    if half := [name for name in half if not name.endswith('.jsonl')]:
        return f'half-written after the kill: {half}'
    process = _start(context, command, folder)
    process.join()
    if process.exitcode != 0:
        return f'the rerun ended with {process.exitcode}'
    contents = command.contents(folder)
    if different := [n for n in expected | contents if contents.get(n) != expected.get(n)]:
        return f'different after the rerun: {different}'
    names = [path.name for path in folder.rglob('*')]
    left = [name for name in names if '.part' in name or 'orbax-checkpoint-tmp' in name]
    return f'left behind: {left}' if left else ''


def _undisturbed(
    context: ForkServerContext, command: Command, folder: Path
) -> tuple[dict[str, Any], float]:
    """Return what a command writes, and how long it takes when everything is compiled."""
    seconds = 0.0
    for _ in range(2):
        shutil.rmtree(folder, ignore_errors=True)
        start = time.perf_counter()
        process = _start(context, command, folder)
        process.join()
        seconds = time.perf_counter() - start
        assert process.exitcode == 0, f'{command.name} failed'
    return command.contents(folder), seconds


def _start(context: ForkServerContext, command: Command, folder: Path) -> Any:
    folder.mkdir(exist_ok=True)
    process = context.Process(target=_run, args=(command.args(folder),))
    process.start()
    return process


def _run(args: list[str]) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    main(args)


class _cache:  # noqa: N801 - a context manager
    """Context with a cache folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        self._before = os.environ.get('FMEN_JAX_CACHE')
        os.environ['FMEN_JAX_CACHE'] = str(self._folder)

    def __exit__(self, *error: object) -> None:
        os.environ.pop('FMEN_JAX_CACHE')
        if self._before is not None:
            os.environ['FMEN_JAX_CACHE'] = self._before


def _commands(folder: Path) -> Iterator[Command]:
    """Write the inputs into a folder, and yield the commands that read them."""
    photo = skimage.data.astronaut()
    for number in range(8):
        place = 40 * number
        save(folder / f'small/{number}.png', photo[place : place + 60, 100:170])
        save(folder / f'photos/{number}.png', photo[place : place + 150, 100:300])
    for name, start in (('a', 0), ('b', 60)):
        save(folder / f'validation/{name}.png', photo[start : start + 40, 100:150])
    weights = folder / 'tiny.safetensors'
    porting.write(weights, Golden(ROOT / 'tests/golden/tiny_x2.npz').below('train/'), {})
    small, photos, validation = (str(folder / n) for n in ('small', 'photos', 'validation'))

    yield Command(
        'upscale',
        lambda out: [
            *('upscale', small, '--output', str(out / 'out'), '--weights', str(weights)),
            *('--engine', 'xla', '--manifest', str(out / 'manifest.jsonl')),
        ],
        lambda out: _files(out / 'out'),
    )
    yield Command(
        'prepare',
        lambda out: ['prepare', photos, '--scale', '2', '--output', str(out / 'prepared')],
        lambda out: _files(out / 'prepared'),
    )
    yield Command(
        'train',
        lambda out: [
            *('train', str(ROOT / 'configs/smoke.py'), '--workdir', str(out / 'run'), *_TRAIN),
            *('--data.train', small, '--data.validation', validation),
        ],
        lambda out: _files(out / 'run') | _metrics(out / 'run/metrics.jsonl'),
    )


def _files(folder: Path) -> dict[str, bytes]:
    """The files of a folder with final names, by name."""
    files = folder.glob('*') if folder.is_dir() else []
    return {
        path.name: path.read_bytes()
        for path in files
        # checkpoints.json has the hashes of the present checkpoints, which depend on the kill.
        if path.is_file() and path.name not in ('lock', 'metrics.jsonl', 'checkpoints.json')
        if not path.name.startswith('.')
    }


def _metrics(path: Path) -> dict[str, Any]:
    """The records of a log without the figures of speed."""
    if not path.exists():
        return {}
    lines = path.read_text().splitlines()
    speed = ('images_per_second', 'waited_for_data', 'seconds_left')
    records = [json.loads(line) for line in lines if line.endswith('}')]
    return {path.name: [{k: v for k, v in record.items() if k not in speed} for record in records]}
