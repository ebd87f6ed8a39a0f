"""Errors that the caller can mend: they say what was found, what was expected, what to do."""


class FMENError(Exception):
    """The base of the errors here; the command line prints them without a traceback."""


class InputError(FMENError, ValueError):
    """An argument, file or array is not what was expected."""


class DownloadError(FMENError, OSError):
    """A file could not be fetched, or is not the one that was asked for."""
