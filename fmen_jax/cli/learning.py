"""Verbs for training: prepare, train."""

import dataclasses
import datetime
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from fmen_jax.errors import FMENError, InputError


def prepare(
    data: Positional[list[str]],
    scale: Annotated[int, arg(aliases=['-s'])],
    output: Annotated[Path | None, arg(aliases=['-o'])] = None,
    broken: Literal['refuse', 'skip'] = 'refuse',
) -> int:
    """Decode pictures once for training, in both sizes; what is prepared already stays.

    Args:
      data: Folders of HR pictures, or of pairs in one of the layouts that `evaluate` knows, or
        div2k/bicubic_x2, x3 or x4 (through TensorFlow Datasets; TFDS_DATA_DIR says where).
      scale: The factor between HR and LR.
      output: Where to put it, for one folder; by default in the cache, where `train` finds it.
      broken: What to do with pictures that cannot be read.
    """
    import tqdm

    from fmen_jax.data import sources

    if output and len(data) > 1:
        raise InputError(f'{output} is one folder, but there are {len(data)} to prepare.')
    for name in data:
        with tqdm.tqdm(unit='picture', desc=name) as bar:

            def report(done: int, total: int, bar: tqdm.tqdm = bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            path = sources.prepare(name, scale, output=output, broken=broken, report=report)
        source = sources.open_source(path)
        for fault in source.skipped:
            print(f'skipped: {fault}', file=sys.stderr)
        print(f'{path}  {len(source.entries)} pictures')
    return 0


def train(args: Sequence[str]) -> int:
    """Train a network: fmen-jax train configs/NAME.py --workdir DIR [options].

    Options override the experiment's settings; `fmen-jax train configs/NAME.py --help` lists them.
    The same command goes on where the run stopped; SIGTERM and Ctrl-C save and leave.
    """
    from fmen_jax.config import Experiment, load_experiment

    @dataclasses.dataclass(frozen=True)
    class Train:
        """Train a network; the same command goes on where a run in the workdir stopped."""

        workdir: Path
        """Gets config.json, metrics.jsonl, tensorboard, pictures, checkpoints, weights."""
        experiment: Annotated[Experiment, arg(name='')]
        cluster: str = ''
        """Of several processes: auto (TPU pod, SLURM, Open MPI, Kubernetes), or HOST:PORT of
        process 0, with --processes and --process."""
        processes: int | None = None
        """How many processes there are, where the cluster is HOST:PORT."""
        process: int | None = None
        """Which of them this is, from 0."""
        profile: int = 0
        """Steps of which to write a trace to WORKDIR/profile, for TensorBoard or Perfetto."""

    if not args or args[0].startswith('-'):
        print('usage: fmen-jax train configs/NAME.py --workdir DIR [options]', file=sys.stderr)
        return 2
    experiment = load_experiment(Path(args[0]))
    given = tyro.cli(
        Train,
        args=args[1:],
        prog=f'fmen-jax train {args[0]}',
        default=Train(tyro.MISSING, experiment),
    )

    import jax

    from fmen_jax.inference.upscaler import Upscaler
    from fmen_jax.runtime import devices
    from fmen_jax.runtime.compilation import keep_compiled
    from fmen_jax.training import loop

    devices.join(given.cluster, given.processes, given.process)
    keep_compiled()
    try:
        weights = loop.train(
            given.experiment,
            given.workdir,
            upscaler=Upscaler,
            profile=given.profile,
            report=lambda r: print(_line(r), flush=True),
        )
    except FMENError as error:
        if jax.process_count() == 1:
            raise
        print(f'error: {error}', file=sys.stderr, flush=True)
        # leaving in order would wait for the other processes
        os._exit(2 if isinstance(error, InputError) else 1)
    print(weights or f'stopped; the same command goes on from the checkpoint in {given.workdir}')
    return 0 if weights else 130


def _line(record: dict[str, Any]) -> str:
    """A record of the training log, for people."""
    if 'validation_psnr' in record:
        means = [
            f'{name} {psnr:.3f} dB (bicubic {record["bicubic_psnr"][name]:.3f})'
            for name, psnr in record['validation_psnr'].items()
        ]
        return f'step {record["step"]}  validation {", ".join(means)}'
    left = datetime.timedelta(seconds=round(record['seconds_left']))
    return (
        f'step {record["step"]}  loss {record["loss"]:.4f}  '
        f'{record["images_per_second"]:.1f} images/s  '
        f'waited for data {record["waited_for_data"]:.0%}  {left} left'
    )
