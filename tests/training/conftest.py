"""Photographs for training runs, and the environment of their processes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import skimage.data

from tests.helpers import SmokeRun, save


@pytest.fixture(scope='session')
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('photos')
    save(folder / 'a.png', skimage.data.astronaut()[:90, 150:250])
    save(folder / 'b.png', skimage.data.chelsea()[100:180, 100:200])
    return folder


@pytest.fixture
def run(photos: Path, tmp_path: Path) -> Callable[[str], SmokeRun]:
    """Make the run of a name; its folder does not exist yet."""
    return lambda name: SmokeRun(tmp_path / name, photos)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, 'FMEN_JAX_CACHE': str(tmp_path / 'cache')}
