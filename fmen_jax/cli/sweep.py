"""`fmen-jax sweep`."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import UseAppendAction, arg

from fmen_jax.cli.usage import without_config
from fmen_jax.errors import InputError
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.research.sweep import MemberResult, make_members, sweep
from fmen_jax.runtime.compilation import keep_compiled
from fmen_jax.training.experiment import Experiment, load_experiment

USAGE = """usage: fmen-jax sweep CONFIG --workdir DIR [--seeds S...] [--vary NAME=V,V...] [options]

Train the network of CONFIG with several seeds (0 1 2 3 if omitted) and settings, or resume the
sweep in the folder DIR. All members see the same batches; each ends as an ordinary run in a folder
of its own. CONFIG and the options are those of `fmen-jax train`; `fmen-jax sweep CONFIG --help`
lists them.

  fmen-jax sweep configs/quickstart.py --workdir runs/sweep --seeds 0 1 2 3 \\
      --vary optim.learning_rate=1e-3,2e-3 --data.train FOLDER --data.validation BENCHMARK
"""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Train all combinations of the seeds and the varied settings, or resume."""

    workdir: Path
    """Folder of the sweep: checkpoints, sweep.json, and one folder for each member."""
    experiment: Annotated[Experiment, arg(name='')]
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Seeds for the initial weights."""
    vary: UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Settings of the optimizer with their values, such as optim.learning_rate=1e-3,2e-3."""


def main(args: Sequence[str]) -> int:
    """Run the command; the exit code."""
    if (code := without_config(args, USAGE)) is not None:
        return code
    given = tyro.cli(
        Sweep,
        args=args[1:],
        prog=f'fmen-jax sweep {args[0]}',
        default=Sweep(tyro.MISSING, load_experiment(Path(args[0]))),
    )
    members = make_members(given.experiment, given.seeds, _varied(itertools.chain(*given.vary)))
    keep_compiled()
    results = sweep(members, given.workdir, upscaler=Upscaler, report=print_record)
    if results is None:
        print(f'stopped; the same command resumes from the checkpoint in {given.workdir}')
        return 130
    for result in results:
        print(_line(result))
    diverged = sum(result.diverged is not None for result in results)
    print(f'{diverged} of {len(results)} diverged')
    return 0


def _varied(texts: Iterable[str]) -> dict[str, tuple[float, ...]]:
    """['optim.eps=1e-8,1e-6', ...] -> {'optim.eps': (1e-8, 1e-6), ...}."""
    varied: dict[str, tuple[float, ...]] = {}
    for name, values in map(_values, texts):
        if name in varied:
            together = ','.join(f'{value:g}' for value in varied[name] + values)
            raise InputError(
                f'--vary has {name} more than once; expected all of its values together: '
                f'{name}={together}.'
            )
        varied[name] = values
    return varied


def _values(text: str) -> tuple[str, tuple[float, ...]]:
    """'optim.eps=1e-8,1e-6' -> ('optim.eps', (1e-8, 1e-6))."""
    name, _, values = text.partition('=')
    try:
        return name.replace('-', '_'), tuple(float(value) for value in values.split(','))
    except ValueError:
        raise InputError(
            f'{text!r} is not a setting with values; expected NAME=VALUE,VALUE,... such as '
            'optim.learning_rate=1e-3,2e-3.'
        ) from None


def print_record(name: str, record: dict[str, Any]) -> None:
    """Print a record of the log of a member, for people."""
    step = f'{name}  step {record["step"]}'
    if 'validation_psnr' in record:
        means = ', '.join(f'{k} {v:.3f} dB' for k, v in record['validation_psnr'].items())
        print(f'{step}  validation {means}', flush=True)
    elif 'diverged' in record:
        print(f'{step}  diverged: {record["diverged"]}', flush=True)
    else:
        print(f'{step}  loss {record["loss"]:.4f}', flush=True)


def _line(result: MemberResult) -> str:
    if result.diverged is not None:
        return f'{result.name}  diverged at step {result.diverged}'
    psnr = '' if result.psnr is None else f'  {result.psnr:.3f} dB'
    return f'{result.name}{psnr}  (weights of step {result.step})'
