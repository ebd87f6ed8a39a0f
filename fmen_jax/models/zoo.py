"""Registry of network configurations by name."""

import dataclasses
import json
from typing import Any

from fmen_jax.errors import InputError
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.layers import Graph
from fmen_jax.models.protocol import NetworkConfig
from fmen_jax.models.rfdn import RFDNConfig
from fmen_jax.models.rlfn import RLFNConfig
from fmen_jax.models.variant import VariantConfig

CLASSES: tuple[type[NetworkConfig], ...] = (FMENConfig, RFDNConfig, RLFNConfig)
"""Configurations that checkpoints are compared with, in this order."""

STORED: tuple[type[NetworkConfig], ...] = (VariantConfig,)
"""Configurations that checkpoints store in their metadata (`NetworkConfig.in_metadata`)."""

NETWORKS: dict[str, NetworkConfig] = {
    # FMEN-S: the network of NTIRE 2022 and of the published checkpoints (paper, table 4).
    'fmen_s': FMENConfig(),
    # FMEN: a reconstruction that matches the published size. Its configuration is not published;
    # this is the only candidate with round numbers that has the parameters and multiply-adds of the
    # paper's table 3 at all three scales.
    'fmen': FMENConfig(n_feats=64, mid_feats=32, up_blocks=(3, 2, 2, 2, 2)),
    # Networks compared with FMEN in the paper and in NTIRE 2022.
    'e_rfdn': RFDNConfig(),
    'rlfn': RLFNConfig(),
}


def config(name: str, *, scale: int = 4) -> NetworkConfig:
    """Return the configuration of a named network at a given scale.

    Raises:
      InputError: If there is no network of that name.
    """
    if name not in NETWORKS:
        raise InputError(f'no network is named {name!r}; expected one of {", ".join(NETWORKS)}.')
    known: Any = NETWORKS[name]
    return dataclasses.replace(known, scale=scale)


def fmen(name: str, *, scale: int = 4) -> FMENConfig:
    """Return the configuration of a named FMEN at a given scale.

    Raises:
      InputError: If there is no network of that name, or it is not an FMEN.
    """
    found = config(name, scale=scale)
    if not isinstance(found, FMENConfig):
        known = ', '.join(n for n, c in NETWORKS.items() if isinstance(c, FMENConfig))
        raise InputError(f'{name} is not an FMEN; expected one of {known}.')
    return found


def name_of(config: NetworkConfig) -> str:
    """Return the name of a configuration, ignoring scale and train-only fields; '' if unnamed."""
    free = {'scale', *config.train_only}

    def deployed(network: Any) -> dict[str, Any]:
        return {k: v for k, v in dataclasses.asdict(network).items() if k not in free}

    for name, known in NETWORKS.items():
        if type(config) is type(known) and deployed(config) == deployed(known):
            return name
    return ''


def to_json(config: NetworkConfig, graph: Graph) -> str:
    """Return a configuration and a graph as JSON, for the metadata of a checkpoint."""
    known: Any = config
    kind = 'deploy' if graph == 'deploy' else 'train'
    return json.dumps({'class': type(config).__name__, 'graph': kind, **dataclasses.asdict(known)})


def from_json(text: str) -> tuple[NetworkConfig, Graph] | None:
    """Return the configuration and the graph that `to_json` wrote.

    None if the text is that of another program, which is not an object with a class.

    Raises:
      InputError: If the configuration is not valid, or not known to this version.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or not isinstance(fields.get('class'), str):
        return None
    classes: dict[str, Any] = {network.__name__: network for network in STORED}
    try:
        graph: Graph = 'deploy' if fields.pop('graph') == 'deploy' else 'collapsed'
        return classes[fields.pop('class')](**fields), graph
    except (KeyError, TypeError) as error:
        raise InputError(
            f'the configuration in the metadata is not known to this version: {text[:200]}. '
            'Update fmen_jax, or save the weights again.'
        ) from error
