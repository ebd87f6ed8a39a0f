"""The command line: one function per verb, thin; the work is in the packages."""

import functools
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import tyro

from fmen_jax.cli.exporting import export
from fmen_jax.cli.learning import prepare, train
from fmen_jax.cli.measuring import compare, evaluate
from fmen_jax.cli.pictures import download, info, upscale
from fmen_jax.errors import FMENError, FMENWarning, InputError
from fmen_jax.runtime.huge_pages import start_with_huge_pages


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    kind = 'note' if issubclass(category, FMENWarning) else f'warning: {category.__name__}'
    print(f'{kind}: {message}', file=sys.stderr)


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
    if own_process:
        warnings.showwarning = _show_warning
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
