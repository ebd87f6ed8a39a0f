"""`fmen-jax download`."""

from collections.abc import Sequence
from typing import Literal

import tqdm
import tyro
from tyro.conf import Positional

from fmen_jax.weights import download as weights
from fmen_jax.weights.download import PUBLISHED


def download(
    name: Positional[Literal[tuple(PUBLISHED)]],  # pyright: ignore[reportInvalidTypeForm]
    url: str | None = None,
) -> int:
    """Download published weights to the cache folder, and check their SHA-256.

    An interrupted download is resumed by the same command.

    Args:
      name: Name of the weights.
      url: Address of a mirror of the same file.
    """
    with tqdm.tqdm(unit='B', unit_scale=True, desc=name, leave=False) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total or None
            bar.update(done - bar.n)

        path = weights.download(name, url=url, report=report)
    print(path)
    return 0


def main(args: Sequence[str]) -> int:
    """Run the command; the exit code."""
    return tyro.cli(download, prog='fmen-jax download', args=args)
