"""Devices and processes: the one file that names a mesh axis."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fmen_jax.errors import InputError

_DATA = 'data'


def join(address: str, processes: int | None = None, process: int | None = None) -> None:
    """Join a cluster, before anything else is done with JAX.

    Args:
      address: '' for no cluster; 'auto' where JAX finds out by itself, on TPU pods, SLURM, Open MPI
        and Kubernetes; else HOST:PORT of process 0, with both numbers.
      processes: how many there are.
      process: which one this is, from 0.

    Raises:
      InputError: an address without numbers or the reverse, or no cluster was found.
    """
    numbered = processes is not None and process is not None
    if address in ('', 'auto') and (processes is not None or process is not None):
        raise InputError('processes and process need cluster HOST:PORT, of process 0.')
    if address == '':
        return
    if address != 'auto' and not (numbered and ':' in address):
        raise InputError(
            f'cluster is {address!r}; expected auto, or HOST:PORT of process 0 together with '
            'processes (how many) and process (which one, from 0).'
        )
    try:
        jax.distributed.initialize(None if address == 'auto' else address, processes, process)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f'cannot join the cluster {address!r}: {error}. Name it by cluster HOST:PORT, '
            'processes and process.'
        ) from error


def make_mesh() -> Mesh:
    """All devices of all processes along one axis, over which a batch is split."""
    # Explicit axes, the default, refuse the reshape of a pixel shuffle.
    return jax.make_mesh((jax.device_count(),), (_DATA,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it: the state."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Put a tree that every process holds alike on all devices."""
    return jax.device_put(tree, replicated(mesh))


def any_process(flag: bool) -> bool:
    """Whether it is true on any process; all of them have to ask."""
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def from_first_process(value: float | None) -> float | None:
    """The value of process 0, on all of them; all have to ask."""
    if jax.process_count() == 1 or value is None:
        return value
    # as float32 pairs would lose digits, the bits travel
    bits = np.frombuffer(np.float64(value).tobytes(), np.uint32)
    shared = np.asarray(multihost_utils.broadcast_one_to_all(bits))
    return float(np.frombuffer(shared.astype(np.uint32).tobytes(), np.float64)[0])


def wait_for_all(name: str) -> None:
    """Go on when all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


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
