"""Errors that the caller can mend: they say what was found, what was expected, what to do."""

import importlib.util


class FMENError(Exception):
    """The base of the errors here; the command line prints them without a traceback."""


class InputError(FMENError, ValueError):
    """An argument, file or array is not what was expected."""


class FMENWarning(UserWarning):
    """Something is done otherwise than asked for; the command line prints it as a note."""


def require(module: str, extra: str, purpose: str) -> None:
    """Raise InputError unless an optional dependency is installed, before work starts."""
    if importlib.util.find_spec(module) is None:
        raise InputError(
            f'{purpose} needs {module}, which is not installed: pip install "fmen_jax[{extra}]".'
        )


class DownloadError(FMENError, OSError):
    """A file could not be fetched, or is not the one that was asked for."""
