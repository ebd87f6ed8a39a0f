"""Atomic writing of files, file hashes, and the cache folder."""

import contextlib
import glob
import hashlib
import os
import platform
from collections.abc import Iterator, Sequence
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
    start, end = f'.{path.stem}.{platform.node()}.', f'.part{path.suffix}'
    aside = path.with_name(f'{start}{os.getpid()}{end}')
    for old in path.parent.glob(f'{glob.escape(start)}*{glob.escape(end)}'):
        process = old.name[len(start) : -len(end)]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            old.unlink(missing_ok=True)
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def check_ending(path: Path, endings: Sequence[str], kind: str) -> None:
    """Raise InputError unless `path` has one of the extensions of its kind, such as 'a picture'."""
    if path.suffix.lower() not in endings:
        raise InputError(
            f'{path}: the ending {path.suffix!r} is not that of {kind}; expected one of '
            f'{", ".join(endings)}.'
        )


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding='utf-8')


def cache_folder() -> Path:
    """Return the folder for reproducible files: FMEN_JAX_CACHE, or the user's cache folder."""
    return Path(os.environ.get('FMEN_JAX_CACHE') or platformdirs.user_cache_dir('fmen_jax'))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
