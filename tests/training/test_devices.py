"""The same losses on one device, on eight (simulated), and in two processes over loopback."""

import json
import os
import socket
import subprocess
import sys

import pytest

from tests.helpers import ROOT

# Twenty steps of the real step on sharded batches; prints the losses.
PROGRAM = """
import json, sys
import jax
dtype = sys.argv[1]
jax.config.update('jax_enable_x64', dtype == 'float64')
import numpy as np
from fmen_jax import porting
from fmen_jax.runtime import devices
process, processes, address = int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
if processes > 1:
    devices.join(address, processes, process)
from fmen_jax.runtime.compilation import jit
from fmen_jax.training.optimizer import OptimConfig, make_optimizer
from fmen_jax.training.state import init_state
from fmen_jax.training.step import StepConfig, make_train_step

golden = np.load(sys.argv[2])
state = {k[6:]: golden[k] for k in golden.files if k.startswith('train/')}
ported = porting.to_variables(state)
cast = lambda a: a.astype(dtype) if a.dtype.kind == 'f' else a
optimizer = make_optimizer(OptimConfig(learning_rate=1e-3, schedule='constant'), 20)
mesh = devices.make_mesh()
train = init_state(jax.tree.map(cast, ported.variables), optimizer, ema=False)
train = devices.replicate(mesh, train)
module = ported.config.build('collapsed')
step = jit(make_train_step(module, optimizer, StepConfig(dtype=dtype)), donate_argnums=0)
generator = np.random.default_rng(0)
losses = []
for _ in range(20):
    lr = generator.integers(0, 256, (16, 8, 8, 3), np.uint8)
    hr = lr.repeat(2, 1).repeat(2, 2)
    mine = slice(16 // processes * process, 16 // processes * (process + 1))
    batch = devices.split_batch(mesh, {'lr': lr[mine], 'hr': hr[mine]}, 16)
    train, metrics = step(train, batch)
    losses.append(float(metrics.loss))
print(json.dumps([jax.device_count(), losses]))
"""


# Rows of an image over four devices; statistics of each device's part.
PARTS = """
import dataclasses, sys
import jax, numpy as np
import skimage.data
from fmen_jax import porting
from fmen_jax.runtime import devices
from fmen_jax.inference.engines import Xla
from fmen_jax.network import Network
from fmen_jax.training.optimizer import OptimConfig, make_optimizer
from fmen_jax.training.state import init_state
from fmen_jax.training.step import StepConfig, make_train_step
golden = np.load(sys.argv[1])
ported = porting.to_variables({k[6:]: golden[k] for k in golden.files if k.startswith('train/')})
net = Network(ported.config, 'collapsed', ported.variables).fold()
many = Xla(net, 'float32')
assert len(many._devices) == 4
photo = skimage.data.astronaut().astype(np.float32)
alone = jax.jit(net.module.apply)
# one image: rows; four: images; 63 rows: neither
for x in (photo[None, :64, :50], photo[:160, :50].reshape(4, 40, 50, 3), photo[None, :63, :50]):
    sharding = devices.spread(jax.devices(), x.shape)
    assert sharding.is_fully_replicated == (x.shape[1] == 63)
    expected = np.asarray(alone(net.variables, x))
    assert np.abs(many(x) - expected).max() < 1e-3, np.abs(many(x) - expected).max()

mesh = devices.make_mesh()
optimizer = make_optimizer(OptimConfig(), 10)
module = ported.config.build('collapsed')
cast = lambda a: a.astype(np.float32) if a.dtype.kind == 'f' else a
variables = jax.tree.map(cast, ported.variables)
state = init_state(variables, optimizer, ema=False)
lr = photo[:128, :8].astype(np.uint8).reshape(16, 8, 8, 3)
batch = {'lr': lr, 'hr': lr.repeat(2, 1).repeat(2, 2)}
settings = StepConfig(statistics='device')
run = jax.jit(make_train_step(module, optimizer, settings, mesh))
after, metrics = run(devices.replicate(mesh, state), devices.split_batch(mesh, batch, 16))
single = jax.jit(make_train_step(module, optimizer, StepConfig()))
parts = [single(state, {k: v[i : i + 4] for k, v in batch.items()}) for i in range(0, 16, 4)]
mean = np.mean([float(m.loss) for _, m in parts])
assert abs(float(metrics.loss) / mean - 1) < 1e-5
means = jax.tree.map(lambda *a: np.mean(a, 0), *[s.batch_stats for s, _ in parts])
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), after.batch_stats, means)
whole, parts = (jax.tree.leaves(s.batch_stats) for s in (single(state, batch)[0], after))
same = [np.allclose(a, b, rtol=1e-3) for a, b in zip(whole, parts)]
assert not all(same), 'variances of parts are less than that of the whole'
"""


@pytest.mark.exhaustive
@pytest.mark.slow
def test_rows_over_devices_and_statistics_of_each() -> None:
    flags = '--xla_force_host_platform_device_count=4'
    environment = {**os.environ, 'XLA_FLAGS': flags, 'PYTHONPATH': str(ROOT)}
    golden = str(ROOT / 'tests/golden/tiny_x2.npz')
    subprocess.run([sys.executable, '-c', PARTS, golden], env=environment, check=True)


def losses(dtype: str, devices: int, processes: int = 1) -> list[float]:
    """Of so many processes with so many devices each."""
    environment = {
        **os.environ,
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
        'PYTHONPATH': str(ROOT),
    }
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{free.getsockname()[1]}'
    golden = str(ROOT / 'tests/golden/tiny_x2.npz')
    running = [
        subprocess.Popen(
            [sys.executable, '-c', PROGRAM, dtype, golden, str(process), str(processes), address],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in running]
    found = [json.loads(output.splitlines()[-1]) for output in outputs]  # Gloo prints as well
    assert [count for count, _ in found] == [devices * processes] * processes
    assert all(losses == found[0][1] for _, losses in found)
    return found[0][1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('dtype', 'bound'),
    [pytest.param('float32', 1e-4, marks=pytest.mark.exhaustive), ('float64', 1e-10)],
)
def test_devices_and_processes_give_the_losses_of_one(dtype: str, bound: float) -> None:
    one = losses(dtype, 1)
    assert len(one) == 20
    for devices, processes in ((8, 1), (4, 2)):
        others = losses(dtype, devices, processes)
        assert max(abs(a - b) / a for a, b in zip(one, others, strict=True)) < bound
