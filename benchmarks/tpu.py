"""Programs for TPUs, compiled ahead of time by libtpu on a machine without a TPU."""

import dataclasses
import os
from typing import Any

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # otherwise libtpu queries a TPU VM's metadata
os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # safe, as libtpu holds no device here

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from benchmarks.compiled import CHIPS, figures
from fmen_jax.errors import InputError
from fmen_jax.models.initial import initial_variables
from fmen_jax.runtime import devices
from fmen_jax.training.experiment import Experiment
from fmen_jax.training.optimizer import make_optimizer
from fmen_jax.training.state import init_state
from fmen_jax.training.step import make_train_step


def make_mesh(topology: str, rows: int = 1) -> Mesh:
    """Return the mesh of a whole topology such as v5e:2x2.

    Raises:
      InputError: libtpu is not installed or does not know the topology, or `CHIPS` does not contain
        the chip.
    """
    if topology.partition(':')[0] not in CHIPS:
        raise InputError(f'topology is {topology!r}; expected {", ".join(CHIPS)}, such as v5e:2x2.')
    options: dict[str, Any] = {}
    if topology.endswith(':1x1'):  # libtpu's default is four chips per host
        options['chips_per_host_bounds'] = (1, 1, 1)
    try:
        found = topologies.get_topology_desc(topology, 'tpu', **options)
    except Exception as error:
        raise InputError(
            f'cannot compile for {topology}: {str(error).splitlines()[0]}. It needs '
            'pip install ".[tpu]", and a topology that libtpu knows.'
        ) from error
    return devices.make_mesh(rows, devices=found.devices)


def train_step(experiment: Experiment, mesh: Mesh, batch: int) -> Any:
    """Return the train step of an experiment on a global batch, compiled for a mesh."""
    e = experiment
    optimizer = make_optimizer(e.optim, e.loop.steps)
    state = init_state(initial_variables(e.model, e.graph), optimizer, ema=e.step.ema_decay > 0)
    on_all, split = devices.replicated(mesh), devices.over_data(mesh)
    state = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(np.shape(a), np.asarray(a).dtype, sharding=on_all), state
    )
    shape = (batch, e.pipeline.patch, e.pipeline.patch)
    colors = e.model.n_colors
    images = {
        'lr': jax.ShapeDtypeStruct((*shape, colors), np.uint8, sharding=split),
        'hr': jax.ShapeDtypeStruct((*shape, colors * e.model.scale**2), np.uint8, sharding=split),
    }
    settings = e.step.on('tpu', e.graph, e.pipeline.patch)
    module = e.model.build_for_training(e.graph, settings.packed)
    step = make_train_step(module, optimizer, settings, mesh)
    return jax.jit(step, donate_argnums=0).lower(state, images).compile()


def deploy(
    experiment: Experiment, mesh: Mesh, images: int, height: int, width: int, *, shuffle: Any
) -> Any:
    """Return the folded network on LR images, compiled with rows split over the second axis."""
    e = experiment
    settings = e.step.on('tpu', 'deploy', width)
    dtype = jnp.dtype(settings.dtype)
    model: Any = e.model
    module = model.build('deploy', packed=settings.packed, shuffle=shuffle)
    variables = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, dtype, sharding=devices.replicated(mesh)),
        initial_variables(e.model, 'deploy'),
    )
    shape = (images, height, width, e.model.n_colors)
    x = jax.ShapeDtypeStruct(shape, dtype, sharding=devices.over_rows(mesh))
    return jax.jit(module.apply).lower(variables, x).compile()


def measure(compiled: Any, topology: str, images: int, chips: int) -> dict[str, Any]:
    """Return the figures of a compiled program that computes a given number of images."""
    chip = CHIPS[topology.partition(':')[0]]
    found = figures(compiled, chip)
    growing = found['temp_bytes_per_chip'] + found['argument_bytes_per_chip']
    each = growing * chips / images
    return {
        **found,
        'topology': topology,
        'chips': chips,
        'images': images,
        'images_per_second_per_chip': images / chips / found['roofline_seconds'],
        # Temporary memory grows with the batch. The estimate assumes that all of it does.
        'largest_batch_estimate': int(chip.memory * chips / each),
        'chip': dataclasses.asdict(chip),
    }
