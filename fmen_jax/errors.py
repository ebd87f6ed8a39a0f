"""Errors that the caller can fix; messages say what was found, what was expected, what to do."""

import importlib.util


class FMENError(Exception):
    """Base class of the errors of fmen_jax; the command line prints them without a traceback."""


class InputError(FMENError, ValueError):
    """An argument, file or array is not what was expected."""


class FMENWarning(UserWarning):
    """Something is done differently than requested; the command line prints it as a note."""


def require(module: str, extra: str, purpose: str) -> None:
    """Raise InputError unless an optional dependency is installed, before work starts."""
    if importlib.util.find_spec(module) is None:
        raise InputError(
            f'{purpose} needs {module}, which is not installed: pip install "fmen_jax[{extra}]".'
        )


class DownloadError(FMENError, OSError):
    """A file could not be downloaded, or is not the requested one."""
