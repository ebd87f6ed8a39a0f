"""Registry of network configurations by name."""

import dataclasses

from fmen_jax.errors import InputError
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.rfdn import RFDNConfig
from fmen_jax.models.rlfn import RLFNConfig

Config = FMENConfig | RFDNConfig | RLFNConfig
"""Configuration of a network. Each has `scale`, `n_colors`, `receptive_radius` (None if an output
pixel depends on the whole image) and `build(graph)`."""

NETWORKS: dict[str, Config] = {
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


def config(name: str, *, scale: int = 4) -> Config:
    """Return the configuration of a named network at a given scale.

    Raises:
      InputError: If there is no network of that name.
    """
    if name not in NETWORKS:
        raise InputError(f'no network is named {name!r}; there are {", ".join(NETWORKS)}.')
    return dataclasses.replace(NETWORKS[name], scale=scale)


def fmen(name: str, *, scale: int = 4) -> FMENConfig:
    """Return the configuration of a named FMEN; only FMENs can be trained here.

    Raises:
      InputError: If there is no network of that name, or it is not an FMEN.
    """
    found = config(name, scale=scale)
    if not isinstance(found, FMENConfig):
        raise InputError(f'{name} is no FMEN; only those are trained here.')
    return found


def name_of(config: Config) -> str:
    """Return the name of a configuration, ignoring its scale and expand ratios; '' if unnamed."""
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
