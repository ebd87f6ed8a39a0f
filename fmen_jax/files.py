"""Atomic writing of files, their labels and hashes, and the cache folder."""

import collections
import contextlib
import glob
import hashlib
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import platformdirs
import psutil

from fmen_jax.errors import InputError


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, renamed to `path` on success and removed on an error.

    The temporary path has the same extension, because writers choose the format by it. Missing
    folders are created. Temporary files of `path` left by killed processes of this machine are
    removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    start, end = f'.{_shortened(path.stem)}.{platform.node()}.', f'.part{path.suffix}'
    aside = path.with_name(f'{start}{os.getpid()}{end}')
    for old in path.parent.glob(f'{glob.escape(start)}*{glob.escape(end)}'):
        process = old.name[len(start) : -len(end)]
        if process.isdecimal() and not _is_written_by(int(process), old):
            old.unlink(missing_ok=True)
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _shortened(stem: str) -> str:
    """Return a stem that leaves room for more in a file name, which has 255 bytes at most."""
    name = os.fsencode(stem)
    if len(name) <= 68:
        return stem
    return name[:60].decode(errors='ignore') + hashlib.sha256(name).hexdigest()[:8]


def _is_written_by(process: int, path: Path) -> bool:
    """Return whether a process exists that was there already when a file was last written.

    In containers, where process numbers are small, another process often has the number of the dead
    one.
    """
    try:
        slack = 10  # seconds by which the clocks of the file system and of processes may differ
        return psutil.Process(process).create_time() < path.stat().st_mtime + slack
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False


def check_extension(path: Path, extensions: Sequence[str], kind: str) -> None:
    """Raise InputError unless a path has one of the extensions of its kind, such as 'an image'."""
    if path.suffix.lower() not in extensions:
        raise InputError(
            f'{path}: the file extension {path.suffix!r} is not that of {kind}; expected one of '
            f'{", ".join(extensions)}.'
        )


def labels_of(names: Iterable[str]) -> list[str]:
    """Return a label for each name: its stem, or all of the name where two stems are alike.

    Names are those of files and folders; the stem of a folder is its last name, in full.
    """
    names = list(names)
    paths = [Path(name) for name in names]
    stems = [path.resolve().name if path.is_dir() else path.stem for path in paths]
    counts = collections.Counter(stems)
    return [stem if counts[stem] == 1 else name for stem, name in zip(stems, names, strict=True)]


def check_target(path: Path) -> None:
    """Raise InputError unless a file can be written to a path, before work starts."""
    if path.is_dir():
        raise InputError(f'{path} is a folder; expected the name of a file.')
    parents = path.absolute().parents
    folder = next((parent for parent in parents if parent.exists()), parents[-1])
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise InputError(
            f'{path} cannot be written, because {folder} is not a folder in which you may create '
            'files: choose another folder.'
        )


def check_utf8(path: Path) -> None:
    """Raise InputError unless a path is UTF-8, as libvips and Ray require."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(path).decode('utf-8', 'backslashreplace')
        raise InputError(
            f'{shown}: this path is not UTF-8, and such a file cannot be opened: rename it.'
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8; bytes of names that are not UTF-8 become escapes."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding='utf-8', errors='backslashreplace')


def cache_folder() -> Path:
    """Return the folder for reproducible files: FMEN_JAX_CACHE, or the user's cache folder."""
    if folder := os.environ.get('FMEN_JAX_CACHE'):
        return Path(folder).expanduser()
    return Path(platformdirs.user_cache_dir('fmen_jax'))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
