"""Devices and processes: the one file that names a mesh axis."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fmen_jax.errors import InputError

_DATA = 'data'


def make_mesh() -> Mesh:
    """All devices of all processes along one axis, over which a batch is split."""
    # Explicit axes, the default, refuse the reshape of a pixel shuffle.
    return jax.make_mesh((jax.device_count(),), (_DATA,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it: the state."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh, batch: dict[str, np.ndarray], size: int) -> dict[str, Any]:
    """This process's part of a batch -> arrays of the global batch of `size`, split over devices.

    Raises:
      InputError: the batch cannot be split evenly.
    """
    if size % mesh.size:
        raise InputError(f'a batch of {size} cannot be split over {mesh.size} devices evenly.')
    sharding = NamedSharding(mesh, PartitionSpec(_DATA))
    return {
        name: jax.make_array_from_process_local_data(sharding, part) for name, part in batch.items()
    }
