"""The command line, `fmen-jax COMMAND`: one module for each command, imported when it is chosen."""

import importlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from fmen_jax import __version__
from fmen_jax.errors import FMENError, FMENWarning, InputError
from fmen_jax.runtime.huge_pages import start_with_huge_pages

COMMANDS = {
    'upscale': 'Upscale pictures.',
    'evaluate': 'Measure PSNR and SSIM of networks on benchmark folders.',
    'train': 'Train a network, or resume a run.',
    'sweep': 'Train a network with several seeds or settings, on the same batches.',
    'ablate': 'Compare variants of a network over several seeds, with confidence intervals.',
    'prepare': 'Decode pictures for training in advance.',
    'info': 'Describe a checkpoint.',
    'export': 'Convert a network to ONNX, StableHLO or another kind of checkpoint.',
    'download': 'Download published weights.',
    'inspect': 'Look inside a network: attention, attribution, receptive field, spectra, kernels.',
    'web': 'Write or open a page that upscales pictures in the browser.',
    'parity': 'Prove that PyTorch code computes the same from a checkpoint.',
    'compare': 'Compare what networks cost: parameters, memory and time.',
}

_HELP = ('-h', '--help')


def main(args: Sequence[str] | None = None) -> None:
    """Run a command and exit: with 0, with 1 if something failed, with 2 on wrong usage.

    Args:
      args: the arguments; those of this process if omitted.
    """
    own_process = args is None
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in (*_HELP, '--version'):
        print(f'fmen_jax {__version__}' if args and args[0] == '--version' else _overview())
        sys.exit(0 if args else 2)
    command = args[0]
    if command not in COMMANDS:
        print(f'error: no command {command!r}.\n\n{_overview()}', file=sys.stderr)
        sys.exit(2)
    if own_process:
        warnings.showwarning = _show_warning
        escape_output()
        if command in ('train', 'sweep', 'ablate'):
            start_with_huge_pages()
    try:
        code = _run(command, args[1:])
    except (FMENError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        code = 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def escape_output() -> None:
    """Print characters that the encoding of standard output lacks as escape sequences."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')


def _run(command: str, args: Sequence[str]) -> int:
    try:
        return importlib.import_module(f'fmen_jax.cli.{command}').main(args)
    except (RuntimeError, AssertionError) as error:  # JAX raises both if it cannot start
        platforms = os.environ.get('JAX_PLATFORMS')
        if not platforms or _has_backend():
            raise
        raise InputError(
            f'JAX_PLATFORMS is {platforms}, but JAX cannot use such devices on this machine: unset '
            'it, or set it to cpu.'
        ) from error


def _has_backend() -> bool:
    import jax

    try:
        jax.default_backend()
    except (RuntimeError, AssertionError):
        return False
    return True


def _overview() -> str:
    commands = '\n'.join(f'  {name:<10} {text}' for name, text in COMMANDS.items())
    return (
        'usage: fmen-jax COMMAND [options]\n\nFMEN super-resolution in JAX.\n\n'
        f'{commands}\n\n'
        '`fmen-jax COMMAND --help` explains a command; `fmen-jax --version` prints the version.'
    )


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    kind = 'note' if issubclass(category, FMENWarning) else f'warning: {category.__name__}'
    print(f'{kind}: {message}', file=sys.stderr)
