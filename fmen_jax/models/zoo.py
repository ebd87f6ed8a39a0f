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
from fmen_jax.models.rfdn import RFDNConfig
from fmen_jax.models.rlfn import RLFNConfig

Config = FMENConfig | RFDNConfig | RLFNConfig
"""Each has `scale`, `n_colors`, `receptive_radius` (None: the whole image) and `build(graph)`."""

NETWORKS: dict[str, Config] = {
    # FMEN-S: the network of NTIRE 2022 and of the published checkpoints (paper, table 4).
    'fmen_s': FMENConfig(),
    # FMEN: a reconstruction that matches the published size. Its configuration is not published;
    # this is the only round candidate with the parameters and multiply-adds of the paper's table 3
    # at all three scales.
    'fmen': FMENConfig(n_feats=64, mid_feats=32, up_blocks=(3, 2, 2, 2, 2)),
    # The rivals of the paper and of NTIRE 2022.
    'e_rfdn': RFDNConfig(),
    'rlfn': RLFNConfig(),
}


def config(name: str, *, scale: int = 4) -> Config:
    """The configuration of a network of the zoo at a scale.

    Raises:
      InputError: no network of that name.
    """
    if name not in NETWORKS:
        raise InputError(f'no network is named {name!r}; there are {", ".join(NETWORKS)}.')
    return dataclasses.replace(NETWORKS[name], scale=scale)


def fmen(name: str, *, scale: int = 4) -> FMENConfig:
    """`config`, for a name that is an FMEN's: what can be trained here."""
    found = config(name, scale=scale)
    if not isinstance(found, FMENConfig):
        raise InputError(f'{name} is no FMEN; only those are trained here.')
    return found


def name_of(config: Config) -> str:
    """The zoo's name of a configuration, its scale and expand ratios aside; '' if it has none."""
    free = {'scale', 'backbone_expand_ratio', 'attention_expand_ratio'}
    for name, known in NETWORKS.items():
        given = dataclasses.asdict(config)
        if type(config) is type(known) and all(
            given[field] == value
            for field, value in dataclasses.asdict(known).items()
            if field not in free
        ):
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
    rectified: int
    """Elements that went through a ReLU or LeakyReLU."""


def cost(module: Module, height: int, width: int, colors: int = 3) -> Cost:
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
