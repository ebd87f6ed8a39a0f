"""Convert a checkpoint: `python scripts/port_weights.py IN OUT`.

IN is a .pt, .pth or .safetensors file of any published key style, with the train or deploy graph,
wrapped or bare, or the name of published weights. OUT is a bare state dict, which the published
code loads; its extension determines the format. This does what `fmen-jax export --no-fold` does,
and describes both files.
"""

import argparse
import sys
from pathlib import Path

from fmen_jax.cli import escape_output
from fmen_jax.cli.export import CHECKPOINTS, export
from fmen_jax.errors import FMENError
from fmen_jax.files import check_extension
from fmen_jax.network import describe


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', metavar='IN')
    parser.add_argument('target', metavar='OUT', type=Path)
    parser.add_argument(
        '--key-style', help='naming scheme of the keys: github or ntire2022 (default: that of IN)'
    )
    parser.add_argument('--fold', action='store_true', help='fold a train graph to deploy')
    args = parser.parse_args()
    escape_output()
    try:
        check_extension(args.target, CHECKPOINTS, 'a checkpoint')
        print(f'{describe(args.source)}\n')
        export(args.source, args.target, key_style=args.key_style, fold=args.fold)
        print(describe(args.target))
    except (FMENError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
