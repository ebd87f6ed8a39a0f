"""Sweeps: each member is an ordinary run, whatever happens to the others."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data

import fmen_jax
from fmen_jax.errors import InputError
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.research.sweep import make_members, sweep
from fmen_jax.training import loop
from fmen_jax.training.experiment import DataConfig, Experiment, load_experiment
from fmen_jax.training.optimizer import OptimConfig
from tests.helpers import (
    ROOT,
    SHORT,
    SmokeRun,
    changed_experiment,
    interrupt,
    kill_at_ten,
    run_cli,
    save,
)

SMOKE = ROOT / 'configs/smoke.py'


@pytest.fixture(scope='module')
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('photos')
    save(folder / 'a.png', skimage.data.astronaut()[:60, 150:210])
    return folder


def smoke(photos: Path, steps: int = 6, **data: Any) -> Experiment:
    e = load_experiment(SMOKE)
    every = dataclasses.replace(
        e.loop, steps=steps, log_every=1, validate_every=3, checkpoint_every=3
    )
    return dataclasses.replace(e, data=DataConfig(train=(str(photos),), **data), loop=every)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def losses(folder: Path) -> dict[int, float]:
    return {r['step']: r['loss'] for r in records(folder) if 'loss' in r}


def run(members: Any, workdir: Path) -> Any:
    return sweep(members, workdir, upscaler=Upscaler)


@pytest.mark.slow
def test_a_member_is_a_run_of_train_to_the_bit(photos: Path, tmp_path: Path) -> None:
    # one CPU device; the rate is an argument of the sweep's step and a constant in that of train
    e = smoke(photos, validation=(str(photos),))
    members = make_members(e, (0, 7), {'optim.learning_rate': (1e-3, 4e-3)})
    results = run(members, tmp_path / 'sweep')
    assert results
    names = ['learning_rate=0.001-seed0', 'learning_rate=0.001-seed7']
    names += ['learning_rate=0.004-seed0', 'learning_rate=0.004-seed7']
    assert [result.name for result in results] == names
    alone = dataclasses.replace(e, seed=7, optim=dataclasses.replace(e.optim, learning_rate=4e-3))
    loop.train(alone, tmp_path / 'alone', upscaler=Upscaler)
    folder = tmp_path / 'sweep' / names[3]
    for name in ('weights.safetensors', 'train_weights.safetensors', 'card.json', 'config.json'):
        assert (folder / name).read_bytes() == (tmp_path / 'alone' / name).read_bytes(), name
    assert losses(folder) == losses(tmp_path / 'alone')
    others = [tmp_path / 'sweep' / name / 'weights.safetensors' for name in names]
    assert len({path.read_bytes() for path in others}) == 4
    assert fmen_jax.load(others[0]).config == e.model
    assert results[3].psnr == json.loads((folder / 'card.json').read_text())['psnr']


@pytest.mark.slow
def test_killed_and_run_again_gives_the_same_bits(photos: Path, tmp_path: Path) -> None:
    whole, killed = SmokeRun(tmp_path / 'whole', photos), SmokeRun(tmp_path / 'killed', photos)
    options = ('--seeds', '1', '2', '--vary', 'optim.learning_rate=2e-3')
    environment = {**os.environ, 'FMEN_JAX_CACHE': str(tmp_path / 'cache')}
    subprocess.run(whole.command(*options, verb='sweep'), env=environment, check=True)
    process = subprocess.Popen(killed.command(*options, verb='sweep'), env=environment)
    kill_at_ten(process, killed.workdir)
    assert not (killed.workdir / 'sweep.json').exists()
    again = subprocess.run(
        killed.command(*options, verb='sweep'),
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert 'step 5 ' not in again.stdout
    members = [f'learning_rate=0.002-seed{seed}' for seed in (1, 2)]
    files = ('weights.safetensors', 'train_weights.safetensors', 'card.json', 'metrics.jsonl')
    for name in ('sweep.json', *(f'{member}/{file}' for member in members for file in files)):
        found = (killed.workdir / name).read_bytes()
        assert found == (whole.workdir / name).read_bytes(), name


def worsening() -> Any:
    """Upscalers each of which is worse than the one before: the first validation is the best."""
    count = itertools.count()

    def make(network: Any) -> Any:
        dark = next(count)
        return lambda lr: lr.repeat(2, 0).repeat(2, 1) // (1 + dark)

    return make


@pytest.mark.slow
@pytest.mark.parametrize('where', ['loss of step 2', 'validation_psnr of step 3'])
def test_stopped_in_a_validating_step_and_resumed(
    photos: Path, tmp_path: Path, where: str, compilation_cache: None
) -> None:
    e = changed_experiment(smoke(photos, validation=(str(photos),)), model=SHORT['model'])
    members = make_members(e, (1, 2))
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    results = sweep(members, whole, upscaler=worsening())
    assert results
    assert [result.step for result in results] == [3, 3]

    def stop(name: str, record: dict[str, Any]) -> None:
        key, _, step = where.partition(' of step ')
        if name == 'seed1' and key in record and record['step'] == int(step):
            interrupt()

    upscaler = worsening()
    assert sweep(members, stopped, upscaler=upscaler, report=stop) is None
    validated = ['validation_psnr' in record for record in records(stopped / 'seed1')]
    assert sum(validated) == (1 if 'psnr' in where else 0)
    assert not (stopped / 'seed2/weights.safetensors').exists()
    resumed = sweep(members, stopped, upscaler=upscaler)
    assert resumed
    assert [result.step for result in resumed] == [3, 3]
    for name in ('seed1', 'seed2'):
        one, other = (folder / name / 'weights.safetensors' for folder in (whole, stopped))
        assert one.read_bytes() == other.read_bytes()
        assert losses(whole / name) == losses(stopped / name)
        steps = [r['step'] for r in records(stopped / name) if 'validation_psnr' in r]
        assert steps == [3, 6]
    changed = make_members(changed_experiment(e, loop={'steps': 7}), (1, 2))
    with pytest.raises(InputError, match=r'loop\.steps is 7, was 6'):
        run(changed, stopped)


@pytest.mark.slow
def test_a_diverging_member_is_stopped_and_the_others_go_on(photos: Path, tmp_path: Path) -> None:
    # Lion's update is the rate times a sign: at 1e36 the second loss is infinite
    e = dataclasses.replace(smoke(photos), optim=OptimConfig(name='lion', schedule='constant'))
    members = make_members(e, (0,), {'optim.learning_rate': (1e-4, 1e36)})
    good, bad = run(members, tmp_path / 'sweep')
    assert (good.diverged, good.step) == (None, 6)
    assert bad.diverged in (1, 2)
    assert (bad.psnr, bad.step) == (None, None)
    assert not (tmp_path / 'sweep' / bad.name / 'weights.safetensors').exists()
    assert set(losses(tmp_path / 'sweep' / bad.name)) <= {1}
    alone = run(members[:1], tmp_path / 'alone')
    assert alone == [good]
    weights = [tmp_path / n / good.name / 'weights.safetensors' for n in ('sweep', 'alone')]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    # the stopped member stays stopped when the finished sweep is run again
    assert run(members, tmp_path / 'sweep') == [good, bad]
    with pytest.raises(loop.DivergedError, match=r'all members diverged: .*1e\+36-seed0 at step'):
        run(members[1:], tmp_path / 'none')


ON_TWO_DEVICES = """
import sys
from fmen_jax.cli import main
import jax
assert jax.device_count() == 2
main(sys.argv[1:])
"""


@pytest.mark.slow  # a process that compiles for two devices
def test_several_devices_train_the_same_members(photos: Path, tmp_path: Path) -> None:
    one, two = SmokeRun(tmp_path / 'one', photos), SmokeRun(tmp_path / 'two', photos)
    seeds = (0, 1, 2, 3)  # in two rounds of two
    options = ('--loop.steps', '4', '--loop.log-every', '1', '--seeds', *map(str, seeds))
    arguments = two.command(*options, verb='sweep')[3:]
    environment = {
        **os.environ,
        'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
        'FMEN_JAX_CACHE': str(tmp_path / 'cache'),
        'PYTHONPATH': str(ROOT),
    }
    command = [sys.executable, '-c', ON_TWO_DEVICES, *arguments]
    subprocess.run(command, env=environment, check=True)
    e = one.experiment(validate=True, model=SHORT['model'], loop={'steps': 4, 'log_every': 1})
    run(make_members(e, seeds), one.workdir)
    for seed in seeds:
        found, expected = (losses(made.workdir / f'seed{seed}') for made in (two, one))
        # With one device oneDNN convolves, with several Eigen: float32, and Adam amplifies it.
        assert found == pytest.approx(expected, rel=1e-4)
    found, expected = (
        [member['psnr'] for member in json.loads((made.workdir / 'sweep.json').read_text())]
        for made in (two, one)
    )
    assert found == pytest.approx(expected, abs=1e-3)
    assert min(np.diff(sorted(expected))) > 0.01


@pytest.mark.parametrize('others', [(2, 3), (1, 0), (0, 1, 2)])
def test_a_finished_sweep_is_not_that_of_other_seeds(
    photos: Path, tmp_path: Path, others: tuple[int, ...]
) -> None:
    """A checkpoint holds the states of the members without their names."""
    e = changed_experiment(smoke(photos), model=SHORT['model'], loop={'steps': 2})
    work = tmp_path / 'work'
    first = sweep(make_members(e, [0, 1]), work, upscaler=Upscaler)
    assert first is not None
    files = sorted(work.rglob('*'))
    with pytest.raises(InputError, match='contains a sweep of .*seed0.*seed1'):
        sweep(make_members(e, others), work, upscaler=Upscaler)
    assert sorted(work.rglob('*')) == files
    again = sweep(make_members(e, [0, 1]), work, upscaler=Upscaler)
    assert again is not None
    assert [result.name for result in again] == ['seed0', 'seed1']


def test_members_are_checked(photos: Path, tmp_path: Path) -> None:
    e = smoke(photos)
    with pytest.raises(
        InputError, match=r'model\.n_feats cannot be varied in a sweep; .*optim\.b1'
    ):
        make_members(e, (0,), {'model.n_feats': (8, 9)})
    with pytest.raises(InputError, match='the sweep has no members'):
        make_members(e, ())
    with pytest.raises(InputError, match='the sweep has seed1 more than once'):
        make_members(e, (1, 1))
    with pytest.raises(InputError, match='adam has no weight decay'):
        make_members(e, (0,), {'optim.weight_decay': (0.1,)})
    empty = make_members(dataclasses.replace(e, data=DataConfig()), (0,))
    with pytest.raises(InputError, match=r'data\.train is empty'):
        run(empty, tmp_path / 'x')
    unpackable = changed_experiment(e, step={'packed': 3})
    with pytest.raises(InputError, match='packed'):
        run(make_members(unpackable, (0,)), tmp_path / 'x')
    assert not (tmp_path / 'x').exists()


@pytest.mark.slow
def test_command_line(photos: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ('sweep', SMOKE, '--workdir', tmp_path / 's', '--data.train', photos)
    short = ('--loop.steps', 2, '--model.n-feats', 6, '--seeds', 3)
    vary = ('--vary', 'optim.b1=0.8,0.9', '--vary', 'optim.weight-decay=0')
    assert run_cli(*arguments, *short, *vary) == 0
    out = capsys.readouterr().out
    assert 'b1=0.8-weight_decay=0-seed3  (weights of step 2)\n' in out
    assert out.endswith('0 of 2 diverged\n')


def test_bad_options_are_refused(photos: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ('sweep', SMOKE, '--workdir', tmp_path / 's', '--data.train', photos)
    for vary, message in [
        (('--vary', 'optim.b1=high'), 'NAME=VALUE'),
        (('--vary', 'optim.b1=0.8', 'optim.b1=0.9'), 'together: optim.b1=0.8,0.9.'),
        (
            ('--vary', 'optim.learning-rate=1e-3', '--vary', 'optim.learning_rate=2e-3'),
            'together: optim.learning_rate=0.001,0.002.',
        ),
    ]:
        assert run_cli(*arguments, *vary) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / 's').exists()
    assert run_cli('sweep') == 2
    assert '[--seeds S...]' in capsys.readouterr().err
    assert run_cli('sweep', '--help') == 0
