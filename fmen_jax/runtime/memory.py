"""Memory that this process may still use, that of the machine or a container, and its end."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

_CGROUPS = Path('/sys/fs/cgroup')
_OWN_CGROUPS = Path('/proc/self/cgroup')

_MESSAGES = ('RESOURCE_EXHAUSTED', 'Failed to allocate', 'bfc_arena', "Check 'ptr' failed")
"""Parts of the messages by which XLA, onnxruntime and OpenVINO report that memory ran out."""


def ran_out(error: Exception) -> bool:
    """Return whether an error reports that the memory of the machine or a device ran out."""
    return isinstance(error, MemoryError) or any(part in str(error) for part in _MESSAGES)


def available_memory(cgroups: Path = _CGROUPS, own_cgroups: Path = _OWN_CGROUPS) -> int:
    """Return the number of bytes that this process can allocate without swapping.

    This is what is available on the machine, or what is left below the limits of the control
    groups (versions 1 and 2) that contain this process, whichever is least.

    Args:
      cgroups: folder where the file systems of the control groups are mounted.
      own_cgroups: file that lists the control groups of this process, see `man 7 cgroups`.
    """
    left = [_left(folder) for folder in _own_folders(cgroups, own_cgroups)]
    return min([psutil.virtual_memory().available, *(bytes_ for bytes_ in left if bytes_ >= 0)])


def _own_folders(cgroups: Path, own_cgroups: Path) -> Iterator[Path]:
    """Yield the folders of the memory control groups of this process and of their parents.

    In a container, the path may be that outside of the container, which does not exist inside;
    the limits of the container are then in the topmost folder.
    """
    try:
        lines = own_cgroups.read_text(encoding='utf-8').splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(':', 2)
        if not controllers:  # version 2, which is below `unified` if version 1 is in use as well
            homes = [cgroups, cgroups / 'unified']
        elif 'memory' in controllers.split(','):
            homes = [cgroups / 'memory', cgroups / controllers]
        else:
            continue
        relative = PurePosixPath(path.lstrip('/'))
        for home in dict.fromkeys(homes):
            yield from (home / part for part in (relative, *relative.parents))


def _left(folder: Path) -> int:
    """Return the bytes left below the limit of a control group; -1 if it has none."""
    for limits, used, reclaimable in (
        (('memory.max', 'memory.high'), 'memory.current', 'inactive_file'),
        (('memory.limit_in_bytes',), 'memory.usage_in_bytes', 'total_inactive_file'),
    ):
        found = [limit for name in limits if (limit := _number(folder / name)) is not None]
        usage = _number(folder / used)
        if found and usage is not None:
            # The page cache of files that are no longer in use is freed when memory is needed.
            return max(min(found) - usage + _statistic(folder / 'memory.stat', reclaimable), 0)
    return -1


def _number(path: Path) -> int | None:
    """Return the number in a file; None if the file does not exist or says `max`."""
    try:
        return int(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None


def _statistic(path: Path, name: str) -> int:
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except OSError:
        return 0
    fields = dict(line.split(None, 1) for line in lines if ' ' in line)
    return int(fields.get(name, 0))
