"""The weights from which a run starts, and the folded weights that it produces."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fmen_jax import __version__
from fmen_jax.errors import InputError
from fmen_jax.evaluation import protocols
from fmen_jax.files import sha256, write_text
from fmen_jax.models.initial import initial_variables, resized_tail
from fmen_jax.models.layers import Params
from fmen_jax.network import Network, load
from fmen_jax.training.experiment import Experiment, flat
from fmen_jax.training.optimizer import warn_of_large_updates
from fmen_jax.training.state import TrainState


def first_variables(experiment: Experiment) -> Params:
    """Return the variables before the first step.

    They are drawn at random or loaded from a checkpoint, which may be for another scale. A warning
    says if the learning rate is too high for a loaded kernel.

    Raises:
      InputError: If the checkpoint is of another network or graph.
    """
    e = experiment
    if not e.init_from:
        return initial_variables(e.model, e.graph, seed=e.seed, start=e.start)
    net = load(e.init_from)
    net = net.fold() if e.graph == 'deploy' else net
    model: Any = e.model
    expected = dataclasses.replace(model, scale=net.config.scale)
    if net.config != expected:
        raise InputError(
            f'init_from: {e.init_from} contains weights of {net.config}; expected those of '
            f'{expected}.'
        )
    if net.graph == 'deploy' and e.graph != 'deploy':
        raise InputError(
            f'init_from: {e.init_from} contains folded weights, which cannot be trained in the '
            f'graph {e.graph!r}: train them by --graph deploy, or choose weights before folding.'
        )
    variables = jax.tree.map(
        lambda a: np.asarray(a, np.float32 if a.dtype.kind == 'f' else a.dtype), net.variables
    )
    params = variables['params']
    params['tail_0'] = resized_tail(params['tail_0'], net.config.scale, e.model.scale)
    warn_of_large_updates(e.optim, params)
    return variables


def train_network(experiment: Experiment, state: TrainState) -> Network:
    """Return the network of a state, not folded, with the averaged parameters if there are any."""
    variables = jax.tree.map(np.asarray, jax.device_get(state.smoothed))
    if experiment.graph == 'deploy':
        variables.pop('batch_stats')
    return Network(experiment.model, experiment.graph, variables)


def write_weights(
    experiment: Experiment, workdir: Path, state: TrainState, psnr: float | None
) -> Path:
    """Write the folded weights, their card and, for a train graph, the weights before folding.

    Training can be continued from the weights before folding. Returns the path of the folded
    weights.
    """
    path = workdir / 'weights.safetensors'
    network = train_network(experiment, state)
    if experiment.graph != 'deploy':
        network.save(workdir / 'train_weights.safetensors')
    network.fold().save(path)
    card = {
        'network': repr(network.config),
        'sha256': sha256(path),
        'step': int(state.step),
        'validation': experiment.data.validation,
        'protocol': str(protocols.protocol(experiment.data.protocol)),
        'psnr': psnr,
        'fmen_jax': __version__,
        'experiment': flat(experiment),
    }
    write_text(workdir / 'card.json', json.dumps(card, indent=1) + '\n')
    return path
