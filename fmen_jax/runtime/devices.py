"""Devices and processes; no other file names a mesh axis.

A mesh has two axes: batches are split over the first, and the rows of images over the second, for
images too large for one device. The compiler then exchanges the rows that convolutions share.
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
"""Seconds without a heartbeat after which JAX considers a process dead and ends the others."""


class LostError(FMENError):
    """Another process of the cluster ended or cannot be reached."""


@contextmanager
def watched() -> Iterator[None]:
    """Context for code in which processes exchange data; errors there mean that a process is lost.

    Raises:
      LostError: replaces any error other than an FMENError, if there are several processes.
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
    """Join a cluster; must be called before anything else is done with JAX.

    Args:
      address: '' for no cluster; 'auto' where JAX detects the cluster itself (TPU pods, SLURM, Open
        MPI and Kubernetes); else HOST:PORT of process 0, together with `processes` and `process`.
      processes: number of processes.
      process: index of this process, from 0.

    Raises:
      InputError: an address without the two numbers or the reverse, or no cluster was found.
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
    """Return a mesh of devices in which groups of `rows` devices share each image.

    By default the mesh contains all devices of all processes.

    Raises:
      InputError: the number of devices is not a multiple of `rows`.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % rows:
        raise InputError(f'{len(devices)} devices cannot share images by {rows}: take a divisor.')
    # Explicit axes, the default, refuse the reshape of a pixel shuffle.
    shape, types = (len(devices) // rows, rows), (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh(shape, (_DATA, _ROWS), axis_types=types, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of the state: every device holds a full copy."""
    return NamedSharding(mesh, PartitionSpec())


def over_data(mesh: Mesh) -> NamedSharding:
    """Return the sharding of batches: each device, or group sharing rows, holds whole images."""
    return NamedSharding(mesh, PartitionSpec(_DATA))


def over_rows(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits N and H of images [N, H, W, C] over the two mesh axes.

    N and H must be multiples of the sizes of the axes.
    """
    return NamedSharding(mesh, PartitionSpec(_DATA, _ROWS))


def spread(devices: Sequence[Any], shape: tuple[int, ...]) -> NamedSharding:
    """Return a sharding of images [N, H, W, C] of the given shape over devices.

    Whole images are distributed if N is a multiple of the number of devices, else rows if H is one;
    otherwise every device holds all images.
    """
    mesh = make_mesh(devices=devices)
    if shape[0] % len(devices) == 0:
        return over_data(mesh)
    if shape[1] % len(devices) == 0:
        return over_rows(make_mesh(len(devices), devices=devices))
    return replicated(mesh)


def on_each_device(function: Callable, mesh: Mesh) -> Callable:
    """Return a function that applies `function` to each device's part of the batch and averages.

    `function` maps (state, state, batch) to a tree. It sees one part only: batch norms use the
    statistics of that part, and the devices only communicate to average the results. Integers are
    returned without averaging.
    """

    def local(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(function(*args))
        whole = [jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in leaves]
        means = iter(lax.pmean([x for x, w in zip(leaves, whole, strict=True) if not w], _DATA))
        averaged = [x if w else next(means) for x, w in zip(leaves, whole, strict=True)]
        return jax.tree.unflatten(structure, averaged)

    # The outputs are equal on all devices, but the check cannot infer this for the integers.
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(_DATA)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )


def one_on_each_device(function: Callable, mesh: Mesh) -> Callable:
    """Return a function that applies `function` to each device's part, without communication.

    `function` maps (tree, tree, batch) to a tree. The leaves of the first two and of the result
    have a leading axis that is split over devices; every device sees the whole batch.
    """
    each, whole = PartitionSpec(_DATA), PartitionSpec()
    return jax.shard_map(
        function, mesh=mesh, in_specs=(each, each, whole), out_specs=each, check_vma=False
    )


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Put a tree, which must be equal on every process, on all devices."""
    return jax.device_put(tree, replicated(mesh))


def any_process(flag: bool) -> bool:
    """Return whether `flag` is true on any process; all processes must call this function."""
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def from_first_process(value: float | None) -> float | None:
    """Return the value of process 0 on all processes; all processes must call this function."""
    if jax.process_count() == 1 or value is None:
        return value
    # The bits are sent, because a conversion to float32 would lose digits.
    bits = np.frombuffer(np.float64(value).tobytes(), np.uint32)
    shared = np.asarray(multihost_utils.broadcast_one_to_all(bits))
    return float(np.frombuffer(shared.astype(np.uint32).tobytes(), np.float64)[0])


def wait_for_all(name: str) -> None:
    """Wait until all processes have reached this call."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def split_batch(mesh: Mesh, batch: dict[str, np.ndarray], size: int) -> dict[str, Any]:
    """Build arrays of the global batch of `size`, split over devices, from this process's part.

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
