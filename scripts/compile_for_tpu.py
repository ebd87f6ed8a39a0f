"""Compile an experiment for TPUs on a machine without a TPU, and report its predicted cost.

compile_for_tpu.py CONFIG --topology v5e:2x2 --batch 64 --json FILE compiles the train step. With
--image HxW, it compiles the folded network for LR images of this size.
"""

import argparse
import dataclasses
import json
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', type=Path, help='such as configs/fmen_s_x4.py')
    parser.add_argument('--topology', default='v5e:2x2', help='v5e, v5p or v6e and a shape')
    parser.add_argument('--batch', type=int, help='global batch; by default that of the config')
    parser.add_argument('--patch', type=int, help='LR pixels; by default that of the config')
    parser.add_argument('--image', help='compile the folded network for LR images of HxW')
    parser.add_argument('--rows', type=int, default=1, help='chips that share the rows of an image')
    parser.add_argument('--shuffle', default='rows', help='image, rows (default) or none')
    parser.add_argument('--dtype', help='float32 or bfloat16 (default)')
    parser.add_argument('--packed', type=int, help='pixels side by side; default 2')
    parser.add_argument('--statistics', help='global or device; by default that of the config')
    parser.add_argument('--json', type=Path, help='where the figures go')
    args = parser.parse_args()
    if args.image and not re.fullmatch(r'[1-9]\d*x[1-9]\d*', args.image):
        parser.error(f'--image is {args.image!r}; expected height x width, such as 270x480')

    from benchmarks import tpu
    from fmen_jax.errors import FMENError
    from fmen_jax.training.experiment import load_experiment

    given = {k: getattr(args, k) for k in ('dtype', 'packed', 'statistics') if getattr(args, k)}
    try:
        e = load_experiment(args.config)
        e = dataclasses.replace(e, step=dataclasses.replace(e.step, **given))
        if args.patch:
            e = dataclasses.replace(e, pipeline=dataclasses.replace(e.pipeline, patch=args.patch))
        mesh = tpu.make_mesh(args.topology, args.rows)
        start = time.perf_counter()
        batch = args.batch or e.pipeline.batch
        if args.image:
            batch = args.batch or mesh.shape['data']
            height, width = (int(side) for side in args.image.split('x'))
            compiled = tpu.deploy(e, mesh, batch, height, width, shuffle=args.shuffle)
        else:
            compiled = tpu.train_step(e, mesh, batch)
    except FMENError as error:
        sys.exit(f'error: {error}')
    found = tpu.measure(compiled, args.topology, batch, mesh.size)
    found |= {
        'program': f'deploy {args.image}' if args.image else 'train step',
        'config': str(args.config),
        'settings': dataclasses.asdict(e.step.on('tpu', e.graph, e.pipeline.patch)),
        'compile_seconds': time.perf_counter() - start,
    }
    for name, value in found.items():
        print(f'{name:28} {value:.6g}' if isinstance(value, float) else f'{name:28} {value}')
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
