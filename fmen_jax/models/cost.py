"""Cost of a network, counted in its traced program."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen import Module
from jax.extend.core import jaxprs_in_params

from fmen_jax.models.protocol import NetworkConfig


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one forward pass, counted in the traced program."""

    parameters: int
    """Number of trainable parameters."""
    multiply_adds: int
    """Number of multiply-adds of all convolutions, without bias."""
    activations: int
    """Number of elements in the outputs of all convolutions."""
    convolutions: int
    """Number of convolutions."""
    rectified: int
    """Number of elements to which a ReLU or LeakyReLU is applied."""


def count_cost(module: Module, height: int, width: int, colors: int = 3) -> Cost:
    """Return the cost of a network for one LR image of height x width pixels; it is not run."""
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


def ntire_flops(config: NetworkConfig, cost: Cost) -> int:
    """Return the number of FLOPs as counted by NTIRE 2022.

    This is the number of multiply-adds of convolutions without bias, plus one for each element of a
    ReLU or LeakyReLU that the published code registers as a module. The published code of FMEN
    calls them as functions, so they are not counted for FMEN.
    """
    return cost.multiply_adds + (cost.rectified if config.registers_activations else 0)


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Iterate over all equations of a program, including those inside its calls."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _equations(inner)
