"""Write what is needed to share the weights of the package.

python scripts/share_weights.py FOLDER --url https://example.org/weights

For each of them: a folder in the layout of the Hugging Face Hub, with the scores of its card, and
an entry of OpenModelDB, 4x-FMEN-S.json, which says that the files can be downloaded from the URL.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any

from fmen_jax.errors import FMENError
from fmen_jax.files import sha256, write_text
from fmen_jax.network import Network, load
from fmen_jax.weights.model_card import Score
from fmen_jax.weights.names import SHIPPED, card, shipped

PAPER = 'https://arxiv.org/abs/2204.08397'


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', type=Path)
    parser.add_argument('--url', required=True, help='where NAME.safetensors will be')
    parser.add_argument('--author', default='fmen-jax', help='user name at OpenModelDB')
    parser.add_argument(
        '--date', type=datetime.date.fromisoformat, default=datetime.date.today(), help='of release'
    )
    args = parser.parse_args()
    try:
        for name in shipped():
            network = load(SHIPPED / f'{name}.safetensors')
            network.save_pretrained(
                args.folder / name, licence=card(name)['licence'], scores=scores(card(name))
            )
            entry = openmodeldb_entry(name, network, args.url, args.author, args.date)
            path = args.folder / f'{network.config.scale}x-FMEN-S.json'
            write_text(path, json.dumps(entry, indent=4) + '\n')
            print(args.folder / name, path)
    except (FMENError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


def scores(found: dict[str, Any]) -> list[Score]:
    """Return the scores of a card."""
    return [
        Score(data, found['protocol'], means['psnr'], means['ssim'])
        for data, means in found['measured'].items()
    ]


def openmodeldb_entry(
    name: str, network: Network, url: str, author: str, date: datetime.date
) -> dict[str, Any]:
    """Return an entry as the schema of OpenModelDB (src/lib/schema.ts) describes it."""
    found, file = card(name), SHIPPED / f'{name}.safetensors'
    settings = found['training']['experiment']
    scale = network.config.scale
    quality = ', '.join(f'{s.psnr:.2f} dB on {s.data}' for s in scores(found))
    return {
        'name': f'FMEN-S x{scale}',
        'author': author,
        'license': found['licence'],
        'tags': ['photo', 'general-upscaler'],
        'description': f'[FMEN-S]({PAPER}) for pictures that were reduced by bicubic '
        f'interpolation. PSNR of the luma: {quality}. Trained with fmen_jax.',
        'date': date.isoformat(),
        'architecture': 'fmen',
        'size': [f'{settings["model.n_feats"]}nf'],
        'scale': scale,
        'inputChannels': network.config.n_colors,
        'outputChannels': network.config.n_colors,
        'resources': [
            {
                'platform': 'pytorch',
                'type': 'safetensors',
                'size': file.stat().st_size,
                'sha256': sha256(file),
                'urls': [f'{url.rstrip("/")}/{file.name}'],
            }
        ],
        'trainingIterations': settings['loop.steps'],
        'trainingBatchSize': settings['pipeline.batch'],
        'trainingHRSize': settings['pipeline.patch'] * scale,
        'trainingOTF': False,
        'dataset': found['data'],
        'images': [],
    }


if __name__ == '__main__':
    sys.exit(main())
