"""Settings of inference, shared by the command line, Python, jobs and Ray."""

import dataclasses
from typing import Annotated, Literal, get_args

from tyro.conf import arg

from fmen_jax.errors import InputError
from fmen_jax.inference.engines import Dtype, Name


@dataclasses.dataclass(frozen=True)
class InferenceSettings:
    """How a network is run on an image of any size.

    Raises:
      InputError: If a field is out of its range.
    """

    engine: Name = 'xla'
    """Engine that computes. With auto, the installed engines are measured once, and the fastest is
    used."""
    dtype: Dtype = 'float32'
    """Precision of the computation."""
    tile: Annotated[Literal['auto'] | int, arg(aliases=['-t'])] = 'auto'
    """Height and width of a tile in LR pixels; 0 for the whole image; auto chooses by the available
    memory."""
    tile_pad: int | None = None
    """Overlap of tiles in LR pixels. If omitted, as much as exact results need."""
    batch: int = 1
    """Number of tiles of an image that are computed at once."""
    self_ensemble: bool = False
    """Average the outputs over the eight flips and rotations, which takes eight times as long."""

    def __post_init__(self) -> None:
        for name, choices in (('engine', get_args(Name)), ('dtype', get_args(Dtype))):
            if (value := getattr(self, name)) not in choices:
                raise InputError(f'{name} is {value!r}; expected one of {", ".join(choices)}.')
        if self.tile != 'auto' and not _is_count(self.tile, 0):
            raise InputError(f"tile is {self.tile!r}; expected 'auto', or 0 or more LR pixels.")
        if self.tile_pad is not None and not _is_count(self.tile_pad, 0):
            raise InputError(f'tile_pad is {self.tile_pad!r}; expected 0 or more LR pixels.')
        if not _is_count(self.batch, 1):
            raise InputError(f'batch is {self.batch!r}; expected 1 or more tiles.')


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and value >= least
