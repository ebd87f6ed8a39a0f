"""Devices and processes: the one file that names a mesh axis.

A mesh has an axis over which batches are split, and one over which the rows of images are, for
images too large for one device: there the compiler exchanges the rows that convolutions share.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fmen_jax.errors import FMENError, InputError

_DATA, _ROWS = 'data', 'rows'


_HEARTBEAT_SECONDS = 30
"""Without a sign of life after which a process counts as dead, and JAX ends the others."""


class LostError(FMENError):
    """Another process of the cluster ended, or cannot be reached."""


@contextmanager
def watched() -> Iterator[None]:
    """Where processes exchange data: what fails there, fails because one of them is gone.

    Raises:
      LostError: instead of any error but ours, if there are several processes.
    """
    try:
        yield
    except FMENError:
        raise
    except Exception as error:
        if jax.process_count() == 1:
            raise
        reason = (str(error).splitlines() or [repr(error)])[0][:200]
        raise LostError(
            f'a process of the {jax.process_count()} ended or cannot be reached ({reason}). Its '
            'own output says why. The same command, with this or another number of processes, '
            'goes on from the last checkpoint.'
        ) from error


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
        jax.distributed.initialize(
            None if address == 'auto' else address,
            processes,
            process,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f'cannot join the cluster {address!r}: {error}. Name it by cluster HOST:PORT, '
            'processes and process.'
        ) from error


def make_mesh(rows: int = 1, *, devices: Sequence[Any] | None = None) -> Mesh:
    """Devices, by default all of all processes, `rows` of which share each image.

    Raises:
      InputError: the devices cannot be shared so.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % rows:
        raise InputError(f'{len(devices)} devices cannot share images by {rows}: take a divisor.')
    # Explicit axes, the default, refuse the reshape of a pixel shuffle.
    shape, types = (len(devices) // rows, rows), (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh(shape, (_DATA, _ROWS), axis_types=types, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it: the state."""
    return NamedSharding(mesh, PartitionSpec())


def over_data(mesh: Mesh) -> NamedSharding:
    """Every device, or group that shares rows, holds whole images of a batch."""
    return NamedSharding(mesh, PartitionSpec(_DATA))


def over_rows(mesh: Mesh) -> NamedSharding:
    """Images [N, H, W, C] split over both axes; N and H are multiples of them."""
    return NamedSharding(mesh, PartitionSpec(_DATA, _ROWS))


def spread(devices: Sequence[Any], shape: tuple[int, ...]) -> NamedSharding:
    """Images [N, H, W, C] over devices: whole images if N allows, else rows if H does, else all."""
    mesh = make_mesh(devices=devices)
    if shape[0] % len(devices) == 0:
        return over_data(mesh)
    if shape[1] % len(devices) == 0:
        return over_rows(make_mesh(len(devices), devices=devices))
    return replicated(mesh)


def on_each_device(function: Callable, mesh: Mesh) -> Callable:
    """A function of (state, state, batch) -> tree on each device's part of the batch, averaged.

    What is inside sees one part alone: batch norms take its statistics, and the only exchange is
    that of the average. Integers are left as they are.
    """

    def local(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(function(*args))
        whole = [jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in leaves]
        means = iter(lax.pmean([x for x, w in zip(leaves, whole, strict=True) if not w], _DATA))
        kept = [x if w else next(means) for x, w in zip(leaves, whole, strict=True)]
        return jax.tree.unflatten(structure, kept)

    # what comes out is alike on all devices, which the check cannot see of the integers
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(_DATA)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )


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
    devices = mesh.shape[_DATA]
    if size % devices:
        raise InputError(f'a batch of {size} cannot be split over {devices} devices evenly.')
    sharding = over_data(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, part) for name, part in batch.items()
    }
