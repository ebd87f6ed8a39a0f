"""The folder of a run: one process group at a time, one experiment, one set of training images.

A workdir contains `config.json`, the settings, and `data.json`, the names and hashes of the
training images, which must not change while the run is interrupted.
"""

import contextlib
import errno
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import jax

from fmen_jax.data.prepared import Source
from fmen_jax.errors import FMENWarning, InputError
from fmen_jax.files import write_text
from fmen_jax.runtime import devices
from fmen_jax.training.experiment import FREE, Changed, Experiment, flat

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Numbers of the errors by which a file system says that it has no locks."""

_RENAMED = {'loop.keep': 'loop.keep_last'}
"""Settings in config.json of earlier versions, and their present names."""


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Context in which no other run uses `workdir`, which is created if it does not exist.

    In a cluster, every process calls this function, and process 0 holds the lock. The operating
    system releases the lock when that process ends for whatever reason, so a killed run leaves no
    stale lock. On a file system without locks, a warning says that the workdir is not protected.

    Raises:
      InputError: If another run uses the workdir.
    """
    lock = None
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = _lock(workdir / 'lock')
    if devices.any_process(lock is not None and not lock.is_locked):
        raise InputError(
            f'{workdir} is in use by another training process: wait until it has ended, or '
            'choose another workdir.'
        )
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _lock(path: Path) -> filelock.BaseFileLock | None:
    """Return a lock on a file, which is not held if another process holds it.

    The result is None on a file system without locks.
    """
    # Without the fallback: a lock that consists in the existence of a file would survive a SIGKILL.
    lock = filelock.FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        pass
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f'{path.parent} cannot be locked ({error}): make sure that no other training process '
            'uses it.',
            FMENWarning,
            stacklevel=2,
        )
        return None
    return lock


def check_settings(workdir: Path, experiment: Experiment) -> None:
    """Compare the settings with those of the run in `workdir`, if there is one.

    Raises:
      InputError: If settings that affect the result are different. The message lists them.
    """
    path, now = workdir / 'config.json', flat(experiment)
    if not path.exists():
        return
    stored: dict[str, Any] = _read(path, lambda found: isinstance(found, dict))
    for old, new in _RENAMED.items():
        if old in stored:
            stored[new] = stored.pop(old)
    # Settings that were added after the run began had their default values.
    before = flat(Experiment(model=type(experiment.model)())) | stored
    changed = [
        f'\n  {name} is {now.get(name)}, was {before.get(name)}'
        for name in sorted(now.keys() | before.keys())
        if now.get(name) != before.get(name) and name not in FREE
    ]
    if changed:
        raise InputError(
            f'{workdir} contains a run with other settings. Resume it with the same settings, or '
            'choose another workdir; --init-from starts from the weights of a run:'
            + ''.join(changed)
        )


def claim(workdir: Path, experiment: Experiment, sources: Sequence[Source]) -> None:
    """Record the settings and the training images in a new workdir; compare them in an old one.

    In a cluster, every process calls this function, so that all of them train on the same images.

    Raises:
      InputError: If the settings or the images are not those of the run in the workdir. Changed
        images are accepted, with a warning, if `data.changed` is 'accept'.
    """
    check_settings(workdir, experiment)
    images = _images(experiment.data.train, sources)
    if jax.process_index() == 0:
        if not (workdir / 'config.json').exists():
            write_text(workdir / 'config.json', json.dumps(flat(experiment), indent=1) + '\n')
        _check_images(workdir, images, experiment.data.changed)
        rows = ',\n '.join(json.dumps(row) for row in images)
        write_text(workdir / 'data.json', f'[{rows}]\n')
    devices.wait_for_all('workdir')
    if jax.process_index() != 0:
        _check_images(workdir, images, 'refuse')


def _images(folders: Sequence[str], sources: Sequence[Source]) -> list[list[str]]:
    """Return the source, name and hash of each image, in the order in which they are numbered."""
    return [
        [folder, entry.name, entry.digest]
        for folder, source in zip(folders, sources, strict=True)
        for entry in source.entries
    ]


def _check_images(workdir: Path, images: list[list[str]], changed: Changed) -> None:
    path = workdir / 'data.json'
    # Earlier versions did not record the images.
    if not path.exists() or (before := _read(path, _are_images)) == images:
        return
    found = _differences(before, images)
    if changed == 'refuse':
        raise InputError(
            f'the training images are not those with which the run in {workdir} began:{found}\n'
            'Restore them, choose another workdir, or accept the new images by '
            '--data.changed accept. The result is then not that of an uninterrupted run.'
        )
    warnings.warn(
        f'the training images have changed, which --data.changed accepts:{found}',
        FMENWarning,
        stacklevel=2,
    )


def _differences(before: list[list[str]], now: list[list[str]]) -> str:
    """Return a list of what was added, removed and changed, with a few names of each."""
    old, new = ({(source, name): digest for source, name, digest in rows} for rows in (before, now))
    kinds = {
        'added': [key for key in new if key not in old],
        'removed': [key for key in old if key not in new],
        'changed': [key for key in new if key in old and new[key] != old[key]],
    }
    lines = [
        f'\n  {len(keys)} {kind}, such as {keys[0][1]} in {keys[0][0]}'
        for kind, keys in kinds.items()
        if keys
    ]
    return ''.join(lines) or '\n  their order or number has changed'


def _are_images(found: Any) -> bool:
    return isinstance(found, list) and all(
        isinstance(row, list) and [*map(type, row)] == [str, str, str] for row in found
    )


def _read(path: Path, fits: Callable[[Any], bool]) -> Any:
    """Return the contents of a JSON file.

    Raises:
      InputError: If the file is not JSON, or `fits` rejects its contents.
    """
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
        if not fits(found):
            raise ValueError('it does not contain what a run writes')
    except ValueError as error:
        raise InputError(
            f'{path} is broken ({error}): restore it from a backup, or choose another workdir.'
        ) from error
    return found
