"""Networks by name, and what each costs, computed from its configuration."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen import Module
from jax.extend.core import jaxprs_in_params

from fmen_jax.errors import InputError
from fmen_jax.models.fmen import FMENConfig

NETWORKS: dict[str, FMENConfig] = {
    # FMEN-S: the network of NTIRE 2022 and of the published checkpoints (paper, table 4).
    'fmen_s': FMENConfig(),
    # FMEN: a reconstruction that matches the published size. Its configuration is not published;
    # this is the only round candidate with the parameters and multiply-adds of the paper's table 3
    # at all three scales.
    'fmen': FMENConfig(n_feats=64, mid_feats=32, up_blocks=(3, 2, 2, 2, 2)),
}


def config(name: str, *, scale: int = 4) -> FMENConfig:
    """The configuration of a network of the zoo at a scale.

    Raises:
      InputError: no network of that name.
    """
    if name not in NETWORKS:
        raise InputError(f'no network is named {name!r}; there are {", ".join(NETWORKS)}.')
    return dataclasses.replace(NETWORKS[name], scale=scale)


def name_of(config: FMENConfig) -> str:
    """The zoo's name of a configuration, its scale and expand ratios aside; '' if it has none."""
    for name, known in NETWORKS.items():
        free = ('scale', 'backbone_expand_ratio', 'attention_expand_ratio')
        if dataclasses.replace(config, **{f: getattr(known, f) for f in free}) == known:
            return name
    return ''


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one forward pass takes, counted in the traced program."""

    parameters: int
    """Trainable numbers."""
    multiply_adds: int
    """Of all convolutions, without bias."""
    activations: int
    """Elements that the convolutions put out."""
    convolutions: int
    """How many there are."""


def cost(module: Module, height: int, width: int, colors: int = 3) -> Cost:
    """Count a network's cost for one LR image of height x width pixels; nothing is computed."""
    x = jax.ShapeDtypeStruct((1, height, width, colors), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    program = jax.make_jaxpr(module.apply)(variables, x)
    adds, outputs = [], []
    for equation in _equations(program.jaxpr):
        if equation.primitive.name == 'conv_general_dilated':
            *taps, inputs, _ = equation.invars[1].aval.shape
            outputs.append(math.prod(equation.outvars[0].aval.shape))
            adds.append(outputs[-1] * math.prod(taps) * inputs)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params']))
    return Cost(count, sum(adds), sum(outputs), len(outputs))


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a program, those inside its calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _equations(inner)
