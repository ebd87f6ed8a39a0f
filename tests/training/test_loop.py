"""`fmen-jax train`: resumable to the bit, and honest about what goes wrong."""

import dataclasses
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import PIL.Image
import pytest
import skimage.data
from tensorboardX.proto import event_pb2

import fmen_jax
from fmen_jax.errors import InputError
from fmen_jax.files import sha256
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.training import loop
from fmen_jax.training.experiment import DataConfig, Experiment, flat, load_experiment
from fmen_jax.training.optimizer import OptimConfig
from fmen_jax.training.step import StepConfig
from tests.helpers import ROOT, save

SMOKE = ROOT / 'configs/smoke.py'


@pytest.fixture(scope='module')
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('photos')
    save(folder / 'a.png', skimage.data.astronaut()[:90, 150:250])
    save(folder / 'b.png', skimage.data.chelsea()[100:180, 100:200])
    return folder


def smoke(photos: Path, **changes: Any) -> Experiment:
    experiment = dataclasses.replace(load_experiment(SMOKE), **changes)
    return dataclasses.replace(experiment, data=DataConfig(train=(str(photos),)))


def command(workdir: Path, photos: Path, *options: str) -> list[str]:
    verb = [sys.executable, '-m', 'fmen_jax', 'train', str(SMOKE), '--workdir', str(workdir)]
    return [*verb, '--data.train', str(photos), '--data.validation', str(photos), *options]


def pair(one: list[str], environment: dict[str, str], **options: Any) -> list[subprocess.Popen]:
    """Two processes that do what the command of one would do."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{free.getsockname()[1]}'
    cluster = ('--cluster', address, '--processes', '2', '--process')
    return [
        subprocess.Popen([*one, *cluster, str(process)], env=environment, **options)
        for process in range(2)
    ]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, 'FMEN_JAX_CACHE': str(tmp_path / 'cache')}


def losses(workdir: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return {r['step']: r['loss'] for r in records if 'loss' in r}


def kill_at_ten(process: subprocess.Popen, workdir: Path) -> None:
    """SIGKILL as soon as the checkpoint of step 10 is there."""
    deadline = time.time() + 120
    while not (workdir / 'checkpoints/10').exists() and time.time() < deadline:
        assert process.poll() is None, 'it ended before it was killed'
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, 'it ended before it was killed'


@pytest.mark.slow
def test_killed_and_run_again_gives_the_same_bits(
    photos: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    options = ('--step.ema-decay', '0.9')
    subprocess.run(command(whole, photos, *options), env=environment, check=True)
    process = subprocess.Popen(command(killed, photos, *options), env=environment)
    kill_at_ten(process, killed)
    assert not (killed / 'weights.safetensors').exists()
    again = (*options, '--pipeline.threads', '5')  # other workers, the same data
    done = subprocess.run(command(killed, photos, *again), env=environment, check=False)
    assert done.returncode == 0
    assert (killed / 'weights.safetensors').read_bytes() == (
        whole / 'weights.safetensors'
    ).read_bytes()
    assert losses(killed) == losses(whole)
    # the same command once more does nothing and says the same
    subprocess.run(command(killed, photos, *again), env=environment, check=True)
    assert losses(killed) == losses(whole)


@pytest.mark.slow
def test_two_processes_train_as_one(
    photos: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    one, two = tmp_path / 'one', tmp_path / 'two'
    subprocess.run(command(one, photos), env=environment, check=True)
    running = pair(command(two, photos), environment)
    assert [process.wait(timeout=200) for process in running] == [0, 0]
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert (two / 'weights.safetensors').exists()


@pytest.mark.slow
def test_one_of_two_processes_killed_and_run_again_by_one(
    photos: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    steps = ('--loop.steps', '60')
    subprocess.run(command(whole, photos, *steps), env=environment, check=True)
    running = pair(command(killed, photos, *steps), environment, stderr=subprocess.PIPE)
    kill_at_ten(running[1], killed)
    _, messages = running[0].communicate(timeout=60)  # heartbeats are missed for 30 s at most
    assert running[0].returncode not in (0, None)
    assert b'another task died' in messages or b'ended or cannot be reached' in messages
    assert max(losses(killed), default=0) < 60
    running[1].communicate()
    subprocess.run(command(killed, photos, *steps), env=environment, check=True)
    assert losses(killed) == pytest.approx(losses(whole), rel=1e-4)
    assert (killed / 'weights.safetensors').exists()


@pytest.mark.slow
def test_sigterm_saves_and_leaves(
    photos: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    options = ('--loop.steps', '100000', '--loop.checkpoint-every', '100000')
    process = subprocess.Popen(
        command(tmp_path / 'run', photos, *options),
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith('step 10 '):
            break
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert 'the same command resumes from' in output
    (saved,) = [p.name for p in (tmp_path / 'run/checkpoints').iterdir()]
    assert int(saved) == max(losses(tmp_path / 'run'))


def run(experiment: Experiment, workdir: Path) -> Path:
    weights = loop.train(experiment, workdir, upscaler=Upscaler)
    assert weights
    return weights


@pytest.mark.slow
def test_what_a_run_leaves(photos: Path, tmp_path: Path) -> None:
    experiment = smoke(photos)
    weights = run(experiment, tmp_path / 'run')
    net = fmen_jax.load(weights)
    assert (net.config, net.graph) == (experiment.model, 'deploy')
    assert json.loads((tmp_path / 'run/config.json').read_text()) == flat(experiment)
    card = json.loads((tmp_path / 'run/card.json').read_text())
    assert card['sha256'] == sha256(weights)
    assert card['step'] == 30
    assert sorted(losses(tmp_path / 'run')) == [5, 10, 15, 20, 25, 30]
    started = fmen_jax.load(tmp_path / 'run/train_weights.safetensors')
    assert started.graph != 'deploy'
    again = started.fold().variables  # float32 once more: the file has the parameters unfolded
    jax.tree.map(np.testing.assert_array_equal, again, net.variables)
    changed = dataclasses.replace(experiment, optim=OptimConfig(learning_rate=2e-3))
    with pytest.raises(InputError, match=r'optim.learning_rate is 0.002, was 0.001'):
        run(changed, tmp_path / 'run')


@pytest.mark.slow
def test_tensorboard_and_trace(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / 'run'
    experiment = smoke(photos)
    data = dataclasses.replace(experiment.data, validation=(str(photos),))
    experiment = dataclasses.replace(experiment, data=data)
    seen: list[dict[str, Any]] = []
    loop.train(experiment, folder, upscaler=Upscaler, report=seen.append, profile=3)
    (events,) = (folder / 'tensorboard').iterdir()
    curves, pictures = read_events(events)
    assert curves['loss'] == pytest.approx(losses(folder))
    psnr = {r['step']: r['validation_psnr'][photos.name] for r in seen if 'validation_psnr' in r}
    assert sorted(psnr) == [15, 30]
    assert curves[f'validation_psnr/{photos.name}'] == pytest.approx(psnr)
    card = json.loads((folder / 'card.json').read_text())
    assert card['psnr'] == pytest.approx(max(psnr.values()))
    assert set(pictures) == {f'{photos.name}/a', f'{photos.name}/b'}
    bicubic, output, target = np.split(pictures[f'{photos.name}/a'], 3, axis=1)
    assert np.abs(bicubic.astype(int) - target).mean() < np.abs(output.astype(int) - target).mean()
    assert (folder / f'pictures/{photos.name}/a.png').exists()
    np.testing.assert_array_equal(target, skimage.data.astronaut()[:90, 150:250])
    assert output.shape == target.shape
    assert list((folder / 'profile').rglob('*.xplane.pb'))


def read_events(path: Path) -> tuple[dict[str, dict[int, float]], dict[str, np.ndarray]]:
    """Curves and the last pictures of a TensorBoard file: records of length, CRC, event, CRC."""
    data, start = path.read_bytes(), 0
    curves: dict[str, dict[int, float]] = {}
    pictures = {}
    while start < len(data):
        size = int.from_bytes(data[start : start + 8], 'little')
        event = event_pb2.Event.FromString(data[start + 12 : start + 12 + size])
        start += 16 + size
        for value in event.summary.value:
            if value.HasField('image'):
                image = PIL.Image.open(io.BytesIO(value.image.encoded_image_string))
                pictures[value.tag] = np.asarray(image)
            else:
                curves.setdefault(value.tag, {})[event.step] = value.simple_value
    return curves, pictures


@pytest.mark.slow
@pytest.mark.parity
def test_quickstart_cut_short_is_above_bicubic(
    shared: Callable[[str], Path], tmp_path: Path
) -> None:
    """The whole quickstart gains more than 1 dB: README."""
    experiment = load_experiment(ROOT / 'configs/quickstart.py')
    experiment = dataclasses.replace(
        experiment,
        data=DataConfig(
            train=(str(shared('data/train/gb82')),),
            validation=(str(shared('data/benchmarks/Set5')),),
        ),
        loop=dataclasses.replace(experiment.loop, steps=120, validate_every=120),
    )
    seen: list[dict[str, Any]] = []
    loop.train(experiment, tmp_path / 'run', upscaler=Upscaler, report=seen.append)
    (result,) = [record for record in seen if 'validation_psnr' in record]
    assert result['bicubic_psnr']['Set5'] == pytest.approx(28.43, abs=0.01)
    assert result['validation_psnr']['Set5'] > result['bicubic_psnr']['Set5'] + 0.2


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_last_checkpoint(
    photos: Path, tmp_path: Path
) -> None:
    wild = OptimConfig(name='sgd', learning_rate=1e4, schedule='constant')
    experiment = smoke(photos, optim=wild, step=StepConfig(loss='l2'))
    with pytest.raises(loop.DivergedError, match=r'the loss of step \d+ is (nan|inf)') as raised:
        run(experiment, tmp_path / 'run')
    last = max((int(p.name) for p in (tmp_path / 'run/checkpoints').glob('[0-9]*')), default=None)
    assert f'The last checkpoint is of step {last}.' in str(raised.value)
    assert not (tmp_path / 'run/weights.safetensors').exists()


@pytest.mark.slow
def test_parameters_that_are_not_finite_after_the_last_update_are_not_saved(
    photos: Path, tmp_path: Path
) -> None:
    """The loss of the one step is that of the initial weights, and finite."""
    wild = OptimConfig(name='sgd', learning_rate=1e38, schedule='constant')
    experiment = smoke(photos, optim=wild)
    one_step = dataclasses.replace(experiment.loop, steps=1)
    with pytest.raises(loop.DivergedError, match='the parameters after step 1 are not finite'):
        run(dataclasses.replace(experiment, loop=one_step), tmp_path / 'run')
    assert not list((tmp_path / 'run/checkpoints').glob('[0-9]*'))
    assert not (tmp_path / 'run/weights.safetensors').exists()


def test_faults_before_the_work(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match='data.train is empty'):
        loop.train(load_experiment(SMOKE), tmp_path / 'run', upscaler=Upscaler)
    twin = tmp_path / photos.name
    twin.symlink_to(photos)
    data = DataConfig(train=(str(photos),), validation=(str(photos), str(twin)))
    with pytest.raises(InputError, match='folders of the same name'):
        again = dataclasses.replace(load_experiment(SMOKE), data=data)
        loop.train(again, tmp_path / 'run', upscaler=Upscaler)
    save(tmp_path / 'small/a.png', np.zeros((14, 40, 3), np.uint8))
    data = DataConfig(train=(str(photos),), validation=(str(tmp_path / 'small'),))
    with pytest.raises(InputError, match=r'a.png: 40x14 is too small; protocol .y. needs 15 rows'):
        again = dataclasses.replace(load_experiment(SMOKE), data=data)
        loop.train(again, tmp_path / 'run', upscaler=Upscaler)
    with pytest.raises(InputError, match='no such file; expected an experiment'):
        load_experiment(tmp_path / 'none.py')
    (tmp_path / 'empty.py').write_text('')
    with pytest.raises(InputError, match='expected a variable `experiment`'):
        load_experiment(tmp_path / 'empty.py')
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('section', 'name', 'value', 'message'),
    [
        ('loop', 'steps', 0, 'loop.steps is 0; expected 1 or more'),
        ('pipeline', 'batch', 0, 'pipeline.batch is 0; expected 1 or more'),
        ('pipeline', 'seed', -1, 'pipeline.seed is -1; expected 0 or more'),
        ('step', 'accumulate', 3, 'step.accumulate is 3, which does not divide a batch of 64'),
        ('step', 'ema_decay', 1.5, 'step.ema_decay is 1.5; expected 0, or less than 1'),
        ('model', 'n_colors', 1, 'model.n_colors is 1; pictures are read as 3'),
    ],
)
def test_settings_that_cannot_be(section: str, name: str, value: Any, message: str) -> None:
    changed = dataclasses.replace(getattr(Experiment(), section), **{name: value})
    with pytest.raises(InputError, match=message):
        dataclasses.replace(Experiment(), **{section: changed})


def test_a_mistyped_folder_does_not_claim_the_workdir(photos: Path, tmp_path: Path) -> None:
    experiment = dataclasses.replace(smoke(photos), data=DataConfig(train=('phtos',)))
    with pytest.raises(InputError, match='phtos'):
        loop.train(experiment, tmp_path / 'run', upscaler=Upscaler)
    assert not (tmp_path / 'run/config.json').exists()
