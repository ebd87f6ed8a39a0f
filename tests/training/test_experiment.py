"""Settings: what cannot be is refused with the name that the user wrote."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from fmen_jax.data.batches import PipelineConfig
from fmen_jax.errors import InputError
from fmen_jax.models import zoo
from fmen_jax.models.variant import VariantConfig
from fmen_jax.training.experiment import DataConfig, Experiment, LoopConfig, load_experiment
from fmen_jax.training.optimizer import OptimConfig
from fmen_jax.training.step import StepConfig
from tests.helpers import SmokeRun, changed_experiment, run_cli, save


@pytest.mark.parametrize(
    ('settings', 'name', 'value', 'message'),
    [
        (LoopConfig, 'steps', 0, 'loop.steps is 0; expected 1 or more'),
        (LoopConfig, 'keep_last', 0, 'loop.keep_last is 0; expected 1 or more'),
        (PipelineConfig, 'batch', 0, 'pipeline.batch is 0; expected 1 or more'),
        (PipelineConfig, 'seed', -1, 'pipeline.seed is -1; expected 0 or more'),
        (PipelineConfig, 'sampling', 'errors', "pipeline.sampling is 'errors'; expected one of un"),
        (StepConfig, 'accumulate', 0, 'step.accumulate is 0; expected 1 or more'),
        (StepConfig, 'ema_decay', 1.5, 'step.ema_decay is 1.5; expected 0 or more and less than 1'),
        (StepConfig, 'dtype', 'float16', "step.dtype is 'float16'; expected one of auto, float32"),
        (OptimConfig, 'learning_rate', float('nan'), 'optim.learning_rate is nan; expected 0 or'),
        (OptimConfig, 'name', 'adm', "optim.name is 'adm'; expected one of adam, adamw"),
        (OptimConfig, 'weight_decay', 0.1, 'optim.weight_decay is 0.1, but adam has no weight'),
        (DataConfig, 'broken', 'ignore', "data.broken is 'ignore'; expected one of refuse, skip"),
        (DataConfig, 'protocol', 'z', "data.protocol is 'z'; expected one of y, edsr-div2k"),
    ],
)
def test_each_section_checks_its_own_fields(
    settings: Any, name: str, value: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        settings(**{name: value})


@pytest.mark.parametrize(
    ('section', 'name', 'value', 'message'),
    [
        ('step', 'accumulate', 3, 'step.accumulate is 3, which does not divide pipeline.batch, 64'),
        (
            'optim',
            'warmup_steps',
            10**6,
            'optim.warmup_steps is 1000000, but loop.steps is 1000000',
        ),
        ('model', 'n_colors', 1, 'model.n_colors is 1; expected 3'),
    ],
)
def test_the_experiment_checks_what_concerns_several(
    section: str, name: str, value: Any, message: str
) -> None:
    changed = dataclasses.replace(getattr(Experiment(), section), **{name: value})
    with pytest.raises(InputError, match=message):
        Experiment(**{section: changed})


def test_patches_must_be_as_large_as_the_network_needs() -> None:
    patches = PipelineConfig(patch=12)
    Experiment(model=VariantConfig(attention='hfab'), pipeline=patches)
    with pytest.raises(InputError, match=r'pipeline.patch is 12, but this network needs .* 15'):
        Experiment(model=VariantConfig(attention='esa'), pipeline=patches)


def test_the_command_line_names_the_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ('--workdir', tmp_path / 'run', '--loop.steps', 0)
    assert run_cli('train', SmokeRun.config, *options) == 2
    assert 'loop.steps is 0; expected 1 or more' in ' '.join(capsys.readouterr().err.split())


def test_files_that_define_no_experiment(tmp_path: Path) -> None:
    with pytest.raises(InputError, match='there is no such file; expected a Python file'):
        load_experiment(tmp_path / 'none.py')
    (tmp_path / 'empty.py').write_text('')
    with pytest.raises(InputError, match='defines no variable `experiment`'):
        load_experiment(tmp_path / 'empty.py')


def test_faults_of_the_data_are_found_before_the_work(
    run: Callable[[str], SmokeRun], tmp_path: Path
) -> None:
    made = run('run')
    with pytest.raises(InputError, match='data.train is empty'):
        made.train(load_experiment(SmokeRun.config))
    twin = tmp_path / made.photos.name
    twin.symlink_to(made.photos)
    folders = (str(made.photos), str(twin))
    with pytest.raises(InputError, match='folders of the same name'):
        made.train(made.experiment(data={'validation': folders}))
    save(tmp_path / 'small/a.png', np.zeros((14, 40, 3), np.uint8))
    with pytest.raises(InputError, match=r'a.png: 40x14 is too small; protocol .y. needs 15 rows'):
        made.train(made.experiment(data={'validation': (str(tmp_path / 'small'),)}))
    assert not made.workdir.exists()


@pytest.mark.parametrize(
    ('count', 'changes', 'message'),
    [
        (1, {'pipeline': {'patch': 16}, 'step': {'packed': 3}}, 'cannot be packed by 3 pixels'),
        (1, {'graph': 'expanded', 'step': {'packed': 2}}, 'packed'),
        (1, {'pipeline': {'patch': 16}, 'model': zoo.config('e_rfdn')}, 'training RFDNConfig is'),
        (4, {'pipeline': {'batch': 6}}, 'batch is 6, which cannot be split evenly over 4 devices'),
        (
            4,
            {'pipeline': {'batch': 8}, 'step': {'statistics': 'device', 'accumulate': 8}},
            'accumulate is 8, which does not divide the 2 patches on each of 4 devices',
        ),
    ],
)
def test_untrainable_settings_are_refused_before_the_workdir_is_claimed(
    count: int,
    changes: dict[str, Any],
    message: str,
    run: Callable[[str], SmokeRun],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = run('run')
    monkeypatch.setattr(jax, 'device_count', lambda: count)
    with pytest.raises(InputError, match=message):
        made.train(changed_experiment(made.experiment(), **changes))
    assert not made.workdir.exists()
