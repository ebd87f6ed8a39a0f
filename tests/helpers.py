"""What several tests share: golden figures, comparisons, pictures, the command line."""

import ast
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from PIL import Image

from fmen_jax import porting
from fmen_jax.cli import main
from fmen_jax.images.bicubic import imresize
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.network import Network
from fmen_jax.training import loop
from fmen_jax.training.experiment import DataConfig, Experiment, load_experiment

ROOT = Path(__file__).parent.parent
NO_TORCH = 'PyTorch is not installed'

PHOTO = skimage.data.astronaut()[100:157, 150:223]  # 57 x 73: odd on purpose


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def lay_out(folder: Path, layout: str, scale: int = 2) -> Path:
    """A benchmark of two pictures, one gray, in a layout."""
    for name, hr in [('a', PHOTO), ('b', PHOTO[::-1, :, 0])]:
        height, width = (size // scale * scale for size in hr.shape[:2])
        pixels = hr[:height, :width].reshape(height, width, -1)
        lr = imresize(pixels, 1 / scale).squeeze()
        if layout == 'SelfExSR':
            save(folder / f'image_SRF_{scale}/{name}_SRF_{scale}_HR.png', hr)
            save(folder / f'image_SRF_{scale}/{name}_SRF_{scale}_LR.png', lr)
        elif layout == 'EDSR':
            save(folder / f'HR/{name}.png', hr)
            save(folder / f'LR_bicubic/X{scale}/{name}x{scale}.png', lr)
        elif layout == 'DIV2K':
            save(folder / f'{folder.name}_HR/{name}.png', hr)
            save(folder / f'{folder.name}_LR_bicubic/X{scale}/{name}x{scale}.png', lr)
        elif layout == 'BasicSR':
            save(folder / f'GTmod12/{name}.png', hr)
            save(folder / f'LRbicx{scale}/{name}.png', lr)
        elif layout == 'HR folder':
            save(folder / f'HR/{name}.png', hr)
        else:
            save(folder / f'{name}.png', hr)
    return folder


class Golden:
    """The arrays of one golden file below a prefix; images as NHWC float64."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self.arrays = dict(file)
        self.config: dict[str, Any] = ast.literal_eval(str(self.arrays.pop('config', '{}')))

    def below(self, prefix: str) -> dict[str, np.ndarray]:
        found = {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}
        assert found, prefix
        return found

    def image(self, name: str) -> np.ndarray:
        return np.moveaxis(self.arrays[name], -3, -1).astype(np.float64)


def train_variables(tiny: Golden) -> tuple[FMENConfig, Any]:
    """The configuration and the train variables of a small FMEN, in float64 under `x64`."""
    ported = porting.to_variables(tiny.below('train/'))
    wide = jax.tree.map(
        lambda a: jnp.asarray(a, None if a.dtype.kind == 'i' else float), ported.variables
    )
    return ported.config, wide


def writable(extension: str) -> str:
    """An extension of checkpoints; skips if writing it needs PyTorch, which is absent."""
    if extension != '.safetensors':
        pytest.importorskip('torch', reason=NO_TORCH)
    return extension


def not_utf8(name: bytes) -> str:
    """A file name that is not UTF-8; skips where the system refuses such names."""
    if sys.platform != 'linux':
        pytest.skip('file names that are not UTF-8 exist on Linux')
    return os.fsdecode(name)


def run_cli(*args: Any) -> int:
    """The exit code of `fmen-jax ARGS`, run in this process."""
    with pytest.raises(SystemExit) as ended:
        main([*map(str, args)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def corrupted(tree: Any, by: float = 1e-4) -> Any:
    """The same tree of arrays with one number of its largest leaf changed."""
    leaves, structure = jax.tree.flatten(tree)
    largest = max(range(len(leaves)), key=lambda i: leaves[i].size)
    changed = np.array(leaves[largest])
    changed.flat[changed.size // 2] += by
    return jax.tree.unflatten(structure, [*leaves[:largest], changed, *leaves[largest + 1 :]])


def assert_close(found: Any, expected: Any, atol: float) -> None:
    """Equal within an absolute bound at every element of every leaf of two trees."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=atol),
        found,
        expected,
    )


def differs(found: Any, expected: Any, atol: float) -> bool:
    """Whether `assert_close` fails: the twin of a parity test."""
    try:
        assert_close(found, expected, atol)
    except AssertionError:
        return True
    return False


def changed_experiment(experiment: Experiment, **changes: Any) -> Experiment:
    """An experiment with changes, such as loop={'steps': 4} or graph='deploy'."""
    changes = {
        name: dataclasses.replace(getattr(experiment, name), **value)
        if isinstance(value, dict)
        else value
        for name, value in changes.items()
    }
    return dataclasses.replace(experiment, **changes)


SHORT: dict[str, Any] = {
    'model': {'n_feats': 5, 'mid_feats': 5, 'down_blocks': 0, 'up_blocks': (0,)},
    'loop': {'steps': 4, 'log_every': 1, 'validate_every': 2, 'checkpoint_every': 1},
}
"""Changes that make a run as short as possible: four steps of a network that compiles quickly."""


def enlarger(network: Network) -> Callable[[np.ndarray], np.ndarray]:
    """An upscaler by 2 for such runs: it depends on the weights, but needs no compilation."""
    brightness = float(np.mean(network.variables['params']['tail_0']['bias']))
    return lambda lr: np.clip(lr.repeat(2, 0).repeat(2, 1) + brightness, 0, 255).astype(np.uint8)


def _words(value: Any) -> list[str]:
    return [str(part) for part in (value if isinstance(value, tuple) else (value,))]


def interrupt() -> None:
    """What SIGTERM does in this process: call the handler that Python has for it.

    The signal itself is for processes of their own (test_sigterm_saves_and_leaves): in a process
    that has run many tests, its delivery by the kernel ended with SIGSEGV.
    """
    handler = signal.getsignal(signal.SIGTERM)
    assert callable(handler), 'the run does not handle SIGTERM'
    handler(signal.SIGTERM, None)


def kill_at_ten(process: subprocess.Popen, workdir: Path) -> list[int]:
    """SIGKILL as soon as the checkpoint of step 10 exists; returns the process's own children."""
    deadline = time.time() + 120
    while not (workdir / 'checkpoints/10').exists() and time.time() < deadline:
        assert process.poll() is None, 'it ended before it was killed'
        time.sleep(0.01)
    children = [
        int(child)
        for path in Path(f'/proc/{process.pid}/task').glob('*/children')
        for child in path.read_text().split()
    ]
    process.kill()
    assert process.wait() == -signal.SIGKILL, 'it ended before it was killed'
    return children


@dataclasses.dataclass(frozen=True)
class SmokeRun:
    """A training run of configs/smoke.py on a folder of photographs, in a folder of its own."""

    workdir: Path
    photos: Path
    config = ROOT / 'configs/smoke.py'

    def experiment(self, *, validate: bool = False, **changes: Any) -> Experiment:
        """The experiment on the photographs, with changes as in `changed_experiment`."""
        folder = str(self.photos)
        experiment = load_experiment(self.config)
        data = DataConfig(train=(folder,), validation=(folder,) if validate else ())
        return changed_experiment(dataclasses.replace(experiment, data=data), **changes)

    def train(self, experiment: Experiment, **options: Any) -> Path | None:
        return loop.train(experiment, self.workdir, **{'upscaler': Upscaler, **options})

    def command(self, *options: str, verb: str = 'train') -> list[str]:
        """The command line of the run, with the small model and validation on the photographs."""
        start = [sys.executable, '-m', 'fmen_jax', verb, str(self.config)]
        folders = ['--data.train', str(self.photos), '--data.validation', str(self.photos)]
        model = SHORT['model'].items()
        small = [part for name, value in model for part in (f'--model.{name}', *_words(value))]
        return [*start, '--workdir', str(self.workdir), *folders, *small, *options]

    def records(self) -> list[dict[str, Any]]:
        lines = (self.workdir / 'metrics.jsonl').read_text().splitlines()
        return [json.loads(line) for line in lines]

    def losses(self) -> dict[int, float]:
        return {record['step']: record['loss'] for record in self.records() if 'loss' in record}

    def weights(self) -> bytes:
        return (self.workdir / 'weights.safetensors').read_bytes()


def golden_dump(golden: Golden, weights: str = 'train/') -> dict[str, np.ndarray]:
    """The figures of a golden file as `fmen_jax.parity.compare` takes them.

    `weights` selects the graph: 'train/', or 'deploy/' with its output alone.
    """
    arrays = golden.arrays
    deploy = weights == 'deploy/'
    dump = {f'state/{k}': v for k, v in golden.below(weights).items() if k != 'y'}
    dump['input/golden'] = arrays['eval/x']
    dump['eval/float64/golden/out'] = arrays['deploy/y' if deploy else 'eval/y']
    if deploy:
        return dump
    for name, value in golden.below('eval/inter/').items():
        dump[f'eval/float64/golden/layers/{name}/out'] = value
    first = {'out': arrays['steps/pred0'], 'loss': arrays['steps/loss'][0]}
    first |= {f'grad/{key}': value for key, value in golden.below('steps/grad0/').items()}
    last = {f'steps/state/{key}': value for key, value in golden.below('steps/final/').items()}
    dump |= {'train/x': arrays['steps/x'], 'train/y': arrays['steps/y']}
    dump |= {f'train/float64/{key}': value for key, value in (first | last).items()}
    dump |= {f'train/{dtype}/steps/loss': arrays['steps/loss'] for dtype in ('float64', 'float32')}
    return dump


def official_dump(name: str) -> dict[str, np.ndarray]:
    """What the published code gives for a crop, with one of the published checkpoints."""
    with np.load(ROOT / 'tests/golden/official_x4.npz') as file:
        x, y = file['x'][None], file[name][None]
    nchw = (0, 3, 1, 2)
    return {'input/crop': x.transpose(nchw), 'eval/float64/crop/out': y.transpose(nchw)}
