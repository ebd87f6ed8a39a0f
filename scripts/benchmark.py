"""Run the benchmarks: benchmark.py SECTION... [--quick] --json FILE [--plots DIR]."""

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from fmen_jax.runtime import cpu
from fmen_jax.runtime.huge_pages import start_with_huge_pages

SECTIONS = ('train', 'infer', 'memory', 'growth', 'data', 'jobs', 'startup')


def machine() -> dict[str, Any]:
    import jax
    import torch

    return {
        'cpu': cpu.model(),
        'cpu_features': cpu.features(),
        'cores': os.cpu_count(),
        'threads': {'torch': torch.get_num_threads(), 'xla': len(os.sched_getaffinity(0))},
        'versions': {'jax': jax.__version__, 'torch': torch.__version__},
        'backend': jax.default_backend(),
        'glibc_tunables': os.environ.get('GLIBC_TUNABLES'),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))

    def cell(value: Any) -> str:
        return f'{value:.4g}' if isinstance(value, float) else '' if value is None else str(value)

    lines = [columns, ['---'] * len(columns)]
    lines += [[cell(row.get(column)) for column in columns] for row in rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('sections', nargs='*', help=f'of {", ".join(SECTIONS)}; all if none')
    parser.add_argument('--quick', action='store_true', help='small, to see that it runs')
    parser.add_argument('--json', type=Path, required=True, help='where the results go')
    parser.add_argument('--plots', type=Path, help='a folder for pictures of them')
    args = parser.parse_args()
    start_with_huge_pages()  # as training does; applies to all contenders
    chosen = args.sections or SECTIONS
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f'no section {", ".join(sorted(unknown))}; there are {", ".join(SECTIONS)}')
    args.json.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {'machine': machine(), 'quick': args.quick}
    for name in chosen:
        results[name] = importlib.import_module(f'benchmarks.{name}').measure(quick=args.quick)
        print(f'## {name}\n\n{table(results[name]["rows"])}\n')
        print(json.dumps(results[name].get('summary'), indent=1), flush=True)
        args.json.write_text(json.dumps(results, indent=1) + '\n')
    if args.plots:
        from benchmarks import plots

        plots.draw(results, args.plots)


if __name__ == '__main__':
    main()
