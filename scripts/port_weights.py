"""Convert a checkpoint: `python scripts/port_weights.py IN OUT`.

IN is a .pt, .pth or .safetensors file of either published dialect, with the train or deploy graph,
wrapped or bare, or the name of published weights. OUT is a bare state dict, which the published
code loads; its extension determines the format.
"""

import argparse
import sys
from pathlib import Path

from fmen_jax.errors import FMENError
from fmen_jax.network import describe, load
from fmen_jax.porting import DIALECTS


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', metavar='IN')
    parser.add_argument('target', metavar='OUT', type=Path)
    parser.add_argument('--dialect', choices=DIALECTS, help='key names to write (default: as IN)')
    parser.add_argument('--fold', action='store_true', help='fold a train graph to deploy')
    args = parser.parse_args()
    try:
        print(describe(args.source))
        network = load(args.source)
        network = network.fold() if args.fold else network
        network.save(args.target, dialect=args.dialect)
        print(f'\n{describe(args.target)}')
    except (FMENError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
