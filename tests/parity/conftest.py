"""A small network, and PyTorch code in the style of the published one, whole or with a fault."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from fmen_jax.models.fmen import FMENConfig
from fmen_jax.network import Network
from fmen_jax.parity import Dump
from fmen_jax.parity.reference import ReferenceConfig, probe_settings
from tests.helpers import NO_TORCH

STYLE = Path(__file__).with_name('published_style.py').read_text(encoding='utf-8')


@pytest.fixture(scope='session')
def network() -> Network:
    """A train graph whose weights and statistics are far from their initial values."""
    config = FMENConfig(scale=2, n_feats=6, mid_feats=8, down_blocks=1, up_blocks=(1, 1))
    x = np.zeros((1, 4, 4, 3), np.float32)
    shapes = jax.eval_shape(config.build('expanded').init, jax.random.key(0), x)
    generator = np.random.default_rng(0)

    def leaf(path: Any, like: Any) -> np.ndarray:
        if path[-1].key in ('scale', 'var'):
            return generator.uniform(0.5, 2, like.shape).astype(np.float32)
        if path[-1].key == 'num_batches_tracked':
            return np.zeros((), np.int64)
        spread = np.prod(like.shape[:3]) ** -0.5 if path[-1].key == 'kernel' else 0.5
        return generator.normal(0, spread, like.shape).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(leaf, dict(shapes))
    return Network(config, 'expanded', variables)


@pytest.fixture(scope='session')
def weights_file(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint."""
    path = tmp_path_factory.mktemp('parity') / 'weights.safetensors'
    network.save(path)
    return path


@pytest.fixture
def reference(tmp_path: Path) -> Callable[..., str]:
    """Write the PyTorch code, with pairs of texts replaced; returns FILE.py:FMEN."""

    def write(*changes: tuple[str, str]) -> str:
        source = STYLE
        for old, new in changes:
            assert old in source, old
            source = source.replace(old, new)
        (tmp_path / 'their_code.py').write_text(source, encoding='utf-8')
        return f'{tmp_path / "their_code.py"}:FMEN'

    return write


@pytest.fixture
def probed(
    network: Network, weights_file: Path, torch: Any, reference: Callable[..., str]
) -> Iterator[Callable[..., Dump]]:
    """Run the probe in this process: importing PyTorch anew takes seconds."""
    from fmen_jax.parity import probe

    before = dict(sys.modules)

    def run(*changes: tuple[str, str], name: str = 'FMEN', **settings: Any) -> Dump:
        settings = {'stubs': ('torchsummaryX',), **settings}
        target = reference(*changes).replace(':FMEN', f':{name}')
        found = probe_settings(network, ReferenceConfig(**settings))
        return Dump(probe.probe(found, weights_file, target))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'path', list(sys.path))
        yield run
    for module in set(sys.modules) - set(before):
        if module in ('their_code', 'torchsummaryX'):
            del sys.modules[module]


@pytest.fixture(scope='session')
def torch_python() -> str:
    """A Python with PyTorch: FMEN_JAX_TORCH_PYTHON, or this one."""
    if python := os.environ.get('FMEN_JAX_TORCH_PYTHON'):
        return python
    pytest.importorskip('torch', reason=NO_TORCH)
    return sys.executable
