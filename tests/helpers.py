"""What several tests share: golden figures, comparisons, pictures, the command line."""

import ast
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
from fmen_jax.models.fmen import FMENConfig

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


def writable(ending: str) -> str:
    """An ending of checkpoints; skips if writing it needs PyTorch, which is absent."""
    if ending != '.safetensors':
        pytest.importorskip('torch', reason=NO_TORCH)
    return ending


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
