"""`fmen-jax info`."""

from collections.abc import Sequence

import tyro
from tyro.conf import Positional

from fmen_jax.network import describe


def info(weights: Positional[str]) -> int:
    """Describe a checkpoint: its network, recognized by key names and shapes, and its cost.

    Args:
      weights: Checkpoint (.pt, .pth or .safetensors), or the name of weights in the package or of
        published weights.
    """
    print(describe(weights))
    return 0


def main(args: Sequence[str]) -> int:
    """Run the command; the exit code."""
    return tyro.cli(info, prog='fmen-jax info', args=args)
