"""Add weights and their card to the package: ship_weights.py RUN NAME --benchmarks FOLDER."""

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

from fmen_jax.data.pairs import find_pairs
from fmen_jax.errors import FMENError
from fmen_jax.evaluation import protocols, scoring
from fmen_jax.files import sha256, write_text
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.network import load
from fmen_jax.weights.names import SHIPPED

SETS = ('Set5', 'Set14')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('run', type=Path, help='the workdir of a finished training run')
    parser.add_argument('name', help='such as fmen_s_x4')
    parser.add_argument('--benchmarks', type=Path, required=True, help='holds Set5 and Set14')
    parser.add_argument('--commit', help='of the code that trained; by default that of this tree')
    args = parser.parse_args()
    try:
        write(args.run, args.name, args.benchmarks, args.commit or _head())
    except (FMENError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


def write(run: Path, name: str, benchmarks: Path, commit: str) -> None:
    weights = run / 'weights.safetensors'  # of a finished run
    upscaler = Upscaler(load(weights))
    made = json.loads((run / 'card.json').read_text(encoding='utf-8'))
    settings = made['experiment']
    settings['init_from'] = Path(settings['init_from']).name  # without this machine's path
    protocol = protocols.protocol('y')
    measured = {}
    for folder in SETS:
        pairs = find_pairs(benchmarks / folder, upscaler.scale)
        scores = [*scoring.evaluate(upscaler, pairs, scale=upscaler.scale, protocol=protocol)]
        result = scoring.Result(name, folder, upscaler.scale, protocol, scores)
        pictures = {score.name: {'psnr': score.psnr, 'ssim': score.ssim} for score in scores}
        measured[folder] = dataclasses.asdict(result.mean) | {'pictures': pictures}
    card = {
        'name': name,
        'sha256': sha256(weights),
        'licence': 'Apache-2.0',
        'data': 'photos (131 photographs from Unsplash, CC and free wallpapers), gb82 (25, CC0)',
        'derived_from': settings['init_from'] and 'fmen_s_x4 of this package',
        'commit': commit,
        'protocol': str(protocol),
        'measured': measured,
        'training_seconds': _seconds(run),
        'training': made,
    }
    SHIPPED.mkdir(exist_ok=True)
    shutil.copyfile(weights, SHIPPED / f'{name}.safetensors')
    write_text(SHIPPED / f'{name}.json', json.dumps(card, indent=1) + '\n')
    print(json.dumps(measured, indent=1))


def _head() -> str:
    """Return the commit of the tree that this script is in."""
    command = ['git', 'rev-parse', 'HEAD']
    folder = Path(__file__).parent
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _seconds(run: Path) -> float:
    """Return the seconds spent on steps, from the logged speeds, without validation and pauses."""
    lines = (run / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
    records = [r for r in map(json.loads, lines) if 'images_per_second' in r]
    batch = json.loads((run / 'config.json').read_text(encoding='utf-8'))['pipeline.batch']
    steps = [0, *(r['step'] for r in records)]
    speeds = [r['images_per_second'] / batch for r in records]
    return round(sum((b - a) / v for a, b, v in zip(steps, steps[1:], speeds, strict=False)))


if __name__ == '__main__':
    sys.exit(main())
