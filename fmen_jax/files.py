"""Files that are whole or absent, their hashes, and the folder for those that can be remade."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import platformdirs


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; renamed to `path` at the end, removed on an error.

    The ending is kept, because writers choose the format by it. Missing folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f'.{path.stem}.{os.getpid()}.part{path.suffix}')
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding='utf-8')


def cache_folder() -> Path:
    """Where what can be remade is kept: FMEN_JAX_CACHE, or the user's cache folder."""
    return Path(os.environ.get('FMEN_JAX_CACHE') or platformdirs.user_cache_dir('fmen_jax'))


def sha256(path: Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
