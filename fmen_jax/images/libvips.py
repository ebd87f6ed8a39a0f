"""Helpers for libvips images that reading and writing share."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmen_jax.errors import InputError

PROFILE = 'icc-profile-data'
"""Name of the metadata field of the ICC profile."""


def has_field(image: Any, name: str) -> bool:
    """Return whether an image has a metadata field.

    Unlike `get_fields`, this works for an image with fields whose names cannot be decoded.
    """
    return bool(image.get_typeof(name))


@contextlib.contextmanager
def translated_errors(path: Path, problem: str) -> Iterator[None]:
    """Turn an error of libvips into an InputError with the path, a problem and the reason."""
    import pyvips

    try:
        yield
    except pyvips.Error as error:
        raise InputError(f'{path}: {problem}: {reason(error)}') from error


def reason(error: Exception) -> str:
    """Return the message of a libvips error on one line."""
    lines = (line.strip() for line in str(error).splitlines())
    return '; '.join(dict.fromkeys(line for line in lines if line and line != 'unable to call'))
