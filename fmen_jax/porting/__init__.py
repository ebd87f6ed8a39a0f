"""Exact conversion of PyTorch checkpoints to and from Flax variables."""

from fmen_jax.porting.checkpoint_files import (
    EXTENSIONS,
    TORCH_EXTENSIONS,
    read,
    read_metadata,
    write,
)
from fmen_jax.porting.state_dict import (
    Ported,
    StateDict,
    to_state_dict,
    to_variables,
    to_variables_of,
)

__all__ = [
    'EXTENSIONS',
    'TORCH_EXTENSIONS',
    'Ported',
    'StateDict',
    'read',
    'read_metadata',
    'to_state_dict',
    'to_variables',
    'to_variables_of',
    'write',
]
