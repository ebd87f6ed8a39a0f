"""Errors that the caller can fix; messages say what was found, what was expected, what to do."""

import importlib.util
import math
from collections.abc import Sequence


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


def check_range(name: str, value: float, *, least: float, below: float = math.inf) -> None:
    """Raise InputError unless least <= value < below. `name` is spelled as the user writes it."""
    if not least <= value < below:
        limit = '' if below == math.inf else f' and less than {below}'
        raise InputError(f'{name} is {value}; expected {least} or more{limit}.')


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise InputError unless `value` is one of the choices."""
    if value not in choices:
        raise InputError(f'{name} is {value!r}; expected one of {", ".join(choices)}.')


class DownloadError(FMENError, OSError):
    """A file could not be downloaded, or is not the requested one."""
