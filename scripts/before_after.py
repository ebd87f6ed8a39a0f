"""Show an image enlarged by bicubic interpolation and by a network, side by side.

python scripts/before_after.py docs/astronaut.png fmen_s_x4_github docs/before_after.png
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pyvips

import fmen_jax
from fmen_jax.errors import FMENError
from fmen_jax.images.read import read_rgb8
from fmen_jax.images.write import write_rgb8
from fmen_jax.inference.upscaler import Upscaler


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('picture', type=Path)
    parser.add_argument('weights', help='a checkpoint, or the name of published weights')
    parser.add_argument('output', type=Path)
    args = parser.parse_args()
    try:
        upscale = Upscaler(fmen_jax.load(args.weights))
        pixels = read_rgb8(args.picture)
        bicubic = pyvips.Image.new_from_array(pixels).resize(upscale.scale, kernel='cubic')  # pyright: ignore
        line = np.full((bicubic.height, 4, 3), 255, np.uint8)
        both = np.concatenate([bicubic.numpy(), line, upscale(pixels)], axis=1)
        write_rgb8(args.output, both)
    except FMENError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
