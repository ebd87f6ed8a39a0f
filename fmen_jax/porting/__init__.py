"""Exact conversion of PyTorch checkpoints to and from Flax variables."""

from fmen_jax.porting.checkpoint_files import ENDINGS, read, write
from fmen_jax.porting.keys import DIALECTS
from fmen_jax.porting.state_dict import Ported, StateDict, to_state_dict, to_variables

__all__ = [
    'DIALECTS',
    'ENDINGS',
    'Ported',
    'StateDict',
    'read',
    'to_state_dict',
    'to_variables',
    'write',
]
