"""The same losses on one device and on eight (simulated)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Twenty steps of the real step on sharded batches; prints the losses.
PROGRAM = """
import json, sys
import jax
dtype = sys.argv[1]
jax.config.update('jax_enable_x64', dtype == 'float64')
import numpy as np
from fmen_jax import parallel, porting
from fmen_jax.compiler import jit
from fmen_jax.training.optim import OptimConfig, make_optimizer
from fmen_jax.training.state import init_state
from fmen_jax.training.step import StepConfig, make_train_step

golden = np.load(sys.argv[2])
state = {k[6:]: golden[k] for k in golden.files if k.startswith('train/')}
ported = porting.to_variables(state)
cast = lambda a: a.astype(dtype) if a.dtype.kind == 'f' else a
optimizer = make_optimizer(OptimConfig(learning_rate=1e-3, schedule='constant'), 20)
mesh = parallel.make_mesh()
train = init_state(jax.tree.map(cast, ported.variables), optimizer, ema=False)
train = jax.device_put(train, parallel.replicated(mesh))
module = ported.config.build('collapsed')
step = jit(make_train_step(module, optimizer, StepConfig(dtype=dtype)), donate_argnums=0)
generator = np.random.default_rng(0)
losses = []
for _ in range(20):
    lr = generator.integers(0, 256, (16, 8, 8, 3), np.uint8)
    hr = lr.repeat(2, 1).repeat(2, 2)
    train, metrics = step(train, parallel.split_batch(mesh, {'lr': lr, 'hr': hr}, 16))
    losses.append(float(metrics.loss))
print(json.dumps([jax.device_count(), losses]))
"""


def losses(devices: int, dtype: str) -> list[float]:
    flags = f'--xla_force_host_platform_device_count={devices}'
    golden = ROOT / 'tests/golden/tiny_x2.npz'
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM, dtype, str(golden)],
        env={**os.environ, 'XLA_FLAGS': flags, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    count, found = json.loads(done.stdout)
    assert count == devices
    return found


@pytest.mark.slow
@pytest.mark.parametrize(('dtype', 'bound'), [('float32', 1e-4), ('float64', 1e-10)])
def test_eight_devices_give_the_losses_of_one(dtype: str, bound: float, tmp_path: Path) -> None:
    one, eight = losses(1, dtype), losses(8, dtype)
    assert len(one) == 20
    assert max(abs(a - b) / a for a, b in zip(one, eight, strict=True)) < bound
