"""Measure the preconditioner of linear blocks, fresh or trained; see docs/diagnostics.md.

python scripts/preconditioner.py          # fresh blocks of 50 channels, RRRBs with ratios 1 to 4
python scripts/preconditioner.py RUN/train_weights.safetensors     # those of a run's backbone

The statistics of batch norms are those of the checkpoint, or 0 and 1, and are not differentiated.
"""

import argparse
import sys
from functools import partial
from typing import Any

import jax
import numpy as np

import fmen_jax
from fmen_jax.errors import FMENError, InputError
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.initial import initial_variables
from fmen_jax.models.linear_blocks import BLOCKS, block_class
from fmen_jax.models.variant import VariantConfig
from fmen_jax.research.preconditioner import (
    Collapse,
    lanczos_density,
    mean_diagonal,
    preconditioner,
)

Found = list[tuple[str, Collapse, Any]]
"""Names of blocks, the functions that collapse them, and their parameters."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('weights', nargs='?', help='a train checkpoint; fresh weights if omitted')
    args = parser.parse_args()
    try:
        found = trained(args.weights) if args.weights else fresh()
    except FMENError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print('| block | mean | smallest | 10 % | median | 90 % | largest | center tap | other taps |')
    print('|---|---|---|---|---|---|---|---|---|')
    for name, collapse, params in found:
        print(row(name, collapse, params), flush=True)
    return 0


def fresh() -> Found:
    """Return one block of each kind with initial weights, and RRRBs of several expand ratios."""
    found: Found = []
    for block in BLOCKS:
        for ratio in (1, 2, 3, 4) if block == 'rrrb' else (2,):
            config = VariantConfig(down_blocks=1, up_blocks=(0, 0), block=block, expand_ratio=ratio)
            _, collapse, params = backbone(config, initial_variables(config, 'expanded'))[0]
            name = f'{block}, ratio {ratio}' if block == 'rrrb' else block
            found.append((f'fresh {name}', collapse, params))
    return found


def trained(weights: str) -> Found:
    """Return the linear blocks of the backbone of a checkpoint."""
    net = fmen_jax.load(weights)
    if not isinstance(net.config, FMENConfig | VariantConfig):
        raise InputError(
            f'{weights} is of a network without linear blocks ({type(net.config).__name__}); '
            'expected a train checkpoint of an FMEN or of a variant of it.'
        )
    if net.graph == 'deploy':
        raise InputError(
            f'{weights} is folded; expected a train checkpoint, such as the '
            'train_weights.safetensors of a run.'
        )
    found = backbone(net.config, net.variables)
    if not found:
        raise InputError(
            f'{weights} has no backbone blocks, down_blocks being {net.config.down_blocks}; '
            'expected 1 or more of them: choose another checkpoint.'
        )
    return found


def backbone(config: FMENConfig | VariantConfig, variables: Any) -> Found:
    """Return the linear blocks of the backbone of a train graph."""
    block, kind = 'rrrb', 'ERB'
    if isinstance(config, VariantConfig):
        block, kind = config.block, config.backbone

    def collapse(statistics: Any, params: Any) -> Any:
        return block_class(block).collapse(params, statistics)

    found: Found = []
    for name, pair in sorted(variables['params'].items()):
        if name.startswith(f'{kind}s_'):
            for part, params in sorted(pair.items()):
                statistics = variables.get('batch_stats', {}).get(name, {}).get(part, {})
                wide = jax.tree.map(lambda a: np.asarray(a, np.float64), statistics)
                found.append((f'`{name}/{part}`', partial(collapse, wide), params))
    return found


def row(name: str, collapse: Collapse, params: Any) -> str:
    """Return the line of the table of one block."""
    operator = preconditioner(collapse, params)
    density = lanczos_density(operator.multiply, operator.size, steps=80, probes=2)
    taps = mean_diagonal(operator, probes=4)['kernel'].mean((2, 3))
    others = (taps.sum() - taps[1, 1]) / 8
    low, high = density.eigenvalues[[0, -1]]
    quantiles = [density.quantile(share) for share in (0.1, 0.5, 0.9)]
    numbers = [density.mean, low, *quantiles, high, taps[1, 1], others]
    return f'| {name} | {" | ".join(f"{number:.3g}" for number in numbers)} |'


if __name__ == '__main__':
    sys.exit(main())
