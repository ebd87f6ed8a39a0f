"""The command line: one function per verb, thin; the work is in the packages."""

import functools
import sys
from collections.abc import Sequence

import tyro

from fmen_jax.cli.exporting import export
from fmen_jax.cli.learning import prepare, train
from fmen_jax.cli.measuring import compare, evaluate
from fmen_jax.cli.pictures import download, info, upscale
from fmen_jax.errors import FMENError, InputError
from fmen_jax.hugepages import start_with_huge_pages


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, with 1 if something failed, with 2 on wrong usage."""
    verbs = {
        'upscale': upscale,
        'info': info,
        'export': export,
        'download': download,
        'evaluate': evaluate,
        'compare': compare,
        'prepare': prepare,
        'train': functools.partial(train, []),
    }
    own_process = args is None
    args = list(sys.argv[1:] if args is None else args)
    try:
        if args[:1] == ['train']:  # its options depend on the experiment's file
            if own_process:
                start_with_huge_pages()
            sys.exit(train(args[1:]))
        code = tyro.extras.subcommand_cli_from_dict(
            verbs, prog='fmen-jax', description='FMEN super-resolution in JAX.', args=args
        )
    except (FMENError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        code = 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
