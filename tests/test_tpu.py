"""Programs for TPUs, compiled by libtpu on a machine without one."""

import functools
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compiled import collectives
from tests.helpers import ROOT

CONFIG = """
from fmen_jax.training.experiment import Experiment
from fmen_jax.data.batches import PipelineConfig
from fmen_jax.models.fmen import FMENConfig
experiment = Experiment(
    model=FMENConfig(scale=2, n_feats=24, mid_feats=16, down_blocks=1, up_blocks=(1, 1)),
    pipeline=PipelineConfig(patch=16, batch=16),
)
"""


@pytest.fixture(scope='module')
def libtpu(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A path to import libtpu from: beside the environment, where JAX would look for a TPU."""
    if importlib.util.find_spec('libtpu'):
        return ''
    wanted = [r for r in importlib.metadata.requires('jax') or () if r.startswith('libtpu')]
    folder = str(tmp_path_factory.mktemp('libtpu'))
    verb = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', folder]
    done = subprocess.run([*verb, wanted[0].split(';')[0]], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'libtpu cannot be installed: {done.stderr.strip().splitlines()[-1]}')
    return folder


def compiled(tmp_path: Path, libtpu: str, *options: str) -> dict[str, Any]:
    (tmp_path / 'small.py').write_text(CONFIG)
    out = tmp_path / 'out.json'
    verb = [sys.executable, 'scripts/compile_for_tpu.py', str(tmp_path / 'small.py')]
    subprocess.run(
        [*verb, *options, '--json', str(out)],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': libtpu},
        check=True,
    )
    return json.loads(out.read_text())


@pytest.mark.slow
def test_train_step_and_folded_network_compile_for_four_chips(tmp_path: Path, libtpu: str) -> None:
    compile_ = functools.partial(compiled, tmp_path, libtpu, '--topology', 'v5e:2x2')
    found = compile_()
    assert (found['chips'], found['images']) == (4, 16)
    assert found['settings']['dtype'] == 'bfloat16'
    assert found['fits']
    # three norms in each of two blocks, there and back; gradients of kernels, and of all else
    assert found['collectives']['all-reduce']['count'] == 2 * 6 + 2
    apart = compile_('--statistics', 'device')
    assert apart['collectives']['all-reduce']['count'] == 1
    rows = compile_('--image', '64x256', '--rows', '4', '--batch', '1')
    assert rows['collectives'].keys() == {'collective-permute'}  # the rows that are shared


def test_collectives_are_read_from_a_program() -> None:
    program = """
  %a = (f32[50]{0:T(128)}, /*index=1*/bf16[2,3]{1,0}) all-reduce(%x, %y), channel_id=1
  %b = f32[4]{0} all-reduce-done(%c)
  %d = (f32[8]{0}, f32[8]{0}) collective-permute-start(%e)
  %f = f32[9]{0} add(%a, %a)
"""
    assert collectives(program) == {
        'all-reduce': {'count': 1, 'bytes': 212},
        'collective-permute': {'count': 1, 'bytes': 32},
    }
