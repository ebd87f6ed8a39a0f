"""What a network costs, counted in its traced program."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen import Module
from jax.extend.core import jaxprs_in_params

from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.zoo import Config


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
    rectified: int
    """Elements that went through a ReLU or LeakyReLU."""


def count_cost(module: Module, height: int, width: int, colors: int = 3) -> Cost:
    """Count a network's cost for one LR image of height x width pixels; nothing is computed."""
    x = jax.ShapeDtypeStruct((1, height, width, colors), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    program = jax.make_jaxpr(module.apply)(variables, x)
    adds, outputs, rectified = [], [], 0
    for equation in _equations(program.jaxpr):
        if equation.primitive.name == 'conv_general_dilated':
            *taps, inputs, _ = equation.invars[1].aval.shape
            outputs.append(math.prod(equation.outvars[0].aval.shape))
            adds.append(outputs[-1] * math.prod(taps) * inputs)
        elif equation.params.get('name') in ('relu', 'leaky_relu'):
            rectified += math.prod(equation.outvars[0].aval.shape)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params']))
    return Cost(count, sum(adds), sum(outputs), len(outputs), rectified)


def ntire_flops(config: Config, cost: Cost) -> int:
    """FLOPs as NTIRE 2022 counted them.

    Multiply-adds of convolutions without bias, and one for each element of a ReLU or LeakyReLU that
    the published code registers as a module; FMEN's are plain function calls there and count none.
    """
    return cost.multiply_adds + (0 if isinstance(config, FMENConfig) else cost.rectified)


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a program, those inside its calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _equations(inner)
