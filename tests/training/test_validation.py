"""Validation: what is logged, and a run that is stopped in a validation."""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import skimage.data
from tensorboardX.proto import event_pb2

from fmen_jax.network import Network
from fmen_jax.training.experiment import load_experiment
from tests.helpers import ROOT, SHORT, SmokeRun, changed_experiment, enlarger, interrupt


@pytest.mark.usefixtures('compilation_cache')
def test_a_run_stopped_in_a_validation_resumes_with_it(run: Callable[[str], SmokeRun]) -> None:
    whole, stopped = run('whole'), run('stopped')
    experiment = whole.experiment(validate=True, **SHORT, step={'ema_decay': 0.9})
    assert whole.train(experiment, upscaler=enlarger)
    scored: list[int] = []

    def stopping(network: Network) -> Callable[[np.ndarray], np.ndarray]:
        upscale = enlarger(network)

        def call(lr: np.ndarray) -> np.ndarray:
            interrupt()
            scored.append(lr.shape[0])
            return upscale(lr)

        return call

    for step in (2, 4):
        scored.clear()
        assert stopped.train(experiment, upscaler=stopping) is None
        assert len(scored) == 1, 'the validation has two images, and stops between them'
        assert max(stopped.losses()) == step
        assert (stopped.workdir / f'checkpoints/{step}').exists()
        assert validated(stopped) == validated(whole)[: step // 2 - 1]
        if step == 2:  # stopped again, in the same validation
            assert stopped.train(experiment, upscaler=stopping) is None
            assert max(stopped.losses()) == step
            # and in training: the validation of step 2 is made up for, and that of step 4 is next
            assert stopped.train(experiment, upscaler=enlarger, report=at_step(3)) is None
            assert max(stopped.losses()) in (3, 4)
            assert validated(stopped)[:1] == validated(whole)[:1]
    assert stopped.train(experiment, upscaler=enlarger)
    assert validated(stopped) == validated(whole)
    assert stopped.losses() == whole.losses()
    assert stopped.weights() == whole.weights()
    cards = [json.loads((r.workdir / 'card.json').read_text()) for r in (whole, stopped)]
    assert cards[0] == cards[1]


def at_step(step: int) -> Callable[[dict[str, Any]], None]:
    """A report that stops the run after a step."""

    def report(record: dict[str, Any]) -> None:
        if record['step'] == step:
            interrupt()

    return report


def validated(run: SmokeRun) -> list[tuple[int, dict[str, float]]]:
    """Steps and PSNRs of the validations."""
    return [
        (record['step'], record['validation_psnr'])
        for record in run.records()
        if 'validation_psnr' in record
    ]


@pytest.mark.slow
def test_tensorboard_and_trace(run: Callable[[str], SmokeRun]) -> None:
    made = run('run')
    folder, photos = made.workdir, made.photos
    seen: list[dict[str, Any]] = []
    made.train(made.experiment(validate=True), report=seen.append, profile=3)
    (events,) = (folder / 'tensorboard').iterdir()
    curves, pictures = read_events(events)
    assert curves['loss'] == pytest.approx(made.losses())
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


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parity
def test_quickstart_cut_short_is_above_bicubic(
    shared: Callable[[str], Path], tmp_path: Path
) -> None:
    """The whole quickstart gains more than 1 dB: README."""
    made = SmokeRun(tmp_path / 'run', shared('data/train/gb82'))
    experiment = load_experiment(ROOT / 'configs/quickstart.py')
    folders = {
        'train': (str(made.photos),),
        'validation': (str(shared('data/benchmarks/Set5')),),
    }
    experiment = changed_experiment(
        experiment, data=folders, loop={'steps': 120, 'validate_every': 120}
    )
    seen: list[dict[str, Any]] = []
    made.train(experiment, report=seen.append)
    (result,) = [record for record in seen if 'validation_psnr' in record]
    assert result['bicubic_psnr']['Set5'] == pytest.approx(28.43, abs=0.01)
    assert result['validation_psnr']['Set5'] > result['bicubic_psnr']['Set5'] + 0.2


def test_pictures_of_the_current_folder_stay_in_the_workdir(
    run: Callable[[str], SmokeRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run('run')
    experiment = made.experiment(**SHORT)
    data = dataclasses.replace(
        experiment.data, train=(str(made.photos.resolve()),), validation=('.',)
    )
    monkeypatch.chdir(made.photos)
    assert made.train(dataclasses.replace(experiment, data=data), upscaler=enlarger)
    assert [*(made.workdir / 'pictures' / made.photos.name).glob('*.png')]
