"""What the commands with a configuration as first argument have in common."""

import sys
from collections.abc import Sequence


def without_config(args: Sequence[str], usage: str) -> int | None:
    """Print the usage if the first argument is not a configuration file.

    Returns the exit code in this case, and None otherwise.
    """
    if args and not args[0].startswith('-'):
        return None
    if {'-h', '--help'} & {*args}:
        print(usage, end='')
        return 0
    found = f'the first argument is {args[0]}' if args else 'there are no arguments'
    print(f'error: {found}; expected CONFIG, a Python file.\n\n{usage}', end='', file=sys.stderr)
    return 2
