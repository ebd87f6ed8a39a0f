"""`fmen-jax download`."""

import sys
from collections.abc import Sequence
from typing import Literal

import tyro
from tyro.conf import Positional

from fmen_jax.weights import download as weights
from fmen_jax.weights.download import PUBLISHED


def download(
    name: Positional[Literal[tuple(PUBLISHED)]],  # pyright: ignore[reportInvalidTypeForm]
    url: str | None = None,
) -> int:
    """Download published weights to the cache folder, and check their SHA-256.

    Args:
      name: Name of the weights.
      url: Address of a mirror of the same file.
    """
    print(weights.download(name, url=url, progress=sys.stderr.isatty()))
    return 0


def main(args: Sequence[str]) -> int:
    """Run the command; the exit code."""
    return tyro.cli(download, prog='fmen-jax download', args=args)
