"""`fmen-jax parity`."""

import ast
import dataclasses
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import tyro
from tyro.conf import Positional
from tyro.conf import arg as option

from fmen_jax.errors import FMENError, InputError, check_range
from fmen_jax.files import check_extension, labels_of, write_text
from fmen_jax.images.read import read_rgb8
from fmen_jax.network import Network, load
from fmen_jax.parity import reference as references
from fmen_jax.parity.dump import Dump
from fmen_jax.parity.page import as_html
from fmen_jax.parity.stages import CompareConfig, compare
from fmen_jax.runtime.compilation import keep_compiled
from fmen_jax.weights.names import resolve_weights


def parity(
    checkpoint: Positional[str],
    reference: Annotated[str, option(aliases=['-r'])] = 'builtin',
    python: str = references.ReferenceConfig.python,
    arg: list[str] = [],  # noqa: B006
    stub: list[str] = [],  # noqa: B006
    images: list[Path] = [],  # noqa: B006
    dtype: list[Literal['float64', 'float32']] = ['float64', 'float32'],  # noqa: B006
    graph: Literal['auto', 'expanded', 'collapsed', 'deploy'] = 'auto',
    gradients: bool = False,
    steps: int = 0,
    layers: bool = False,
    bound: float = CompareConfig.bound,
    device: Literal['cpu', 'gpu'] = 'cpu',
    timeout: float = references.ReferenceConfig.timeout,
    json: Path | None = None,
    html: Path | None = None,
    write_probe: Path | None = None,
) -> int:
    """Prove that a PyTorch implementation and this package compute the same from a checkpoint.

    The reference FILE.py is executed with your permissions, in a separate process, which contains
    failures but does not protect you from malicious code: name only files that you trust. The
    checkpoint is read as data. The exit code is 0 if the implementations are equal, 1 if they
    differ or if nothing was compared that could show a difference, and 2 if the comparison could
    not be made. docs/parity.md explains the report.

    Args:
      checkpoint: Checkpoint, or name of weights in the package or of published weights.
      reference: FILE.py:NAME, a class or function that returns the network in PyTorch; DUMP.npz
        from the script of write-probe; or builtin, the plain PyTorch code of this package.
      python: Python interpreter that has PyTorch and NumPy; it needs neither JAX nor this package.
      arg: Further arguments of the reference, as KEY=VALUE.
      stub: Modules that the reference imports but does not use, such as torchsummaryX; each is
        replaced by an empty module.
      images: Pictures to compare from files to files. Each is shrunk by the scale and upscaled by
        both; the PSNR is measured against the original.
      dtype: Dtypes in which the reference computes; float64 has to be among them.
      graph: Graph of a train checkpoint to compare: auto is expanded, which has the most layers;
        deploy folds the weights and gives them to the reference.
      gradients: Compare loss, gradients and running statistics of a train step.
      steps: Number of steps of Adam to compare; more than 0 implies gradients.
      layers: List every layer and tensor, not only those that differ.
      bound: Largest error in float64, as a share of the range of the reference's values.
      device: Device of both implementations. On a gpu, TF32 is disabled on both sides.
      timeout: Time limit of the reference in seconds.
      json: File for the report.
      html: File for the report as one page.
      write_probe: File for a script that runs the reference where PyTorch is and JAX is not;
        nothing is compared then.
    """
    if 'float64' not in dtype:
        raise InputError(
            f'--dtype is {" ".join(dtype) or "empty"}; expected float64 among its values, in which '
            'layers, gradients and steps are compared. Add it, or leave out --dtype for both.'
        )
    check_range('--steps', steps, least=0)
    check_range('--bound', bound, least=0, below=1)
    check_range('--timeout', timeout, least=1, below=10**6)
    if html:
        check_extension(html, ['.html', '.htm'], 'a page')
    network = _network(checkpoint, graph)
    config = references.ReferenceConfig(
        arguments=dict(map(_argument, arg)),
        stubs=tuple(stub),
        python=python,
        timeout=timeout,
        dtypes=tuple(dtype),
        gradients=gradients,
        steps=steps,
        device=device,
    )
    labels = labels_of(path.as_posix() for path in images)
    pictures = {label: read_rgb8(path) for label, path in zip(labels, images, strict=True)}
    if write_probe:
        references.write_probe(write_probe, network, config, pictures)
        print(f'python {write_probe} CHECKPOINT FILE.py:NAME DUMP.npz')
        return 0
    try:
        place = jax.devices(device)[0]
    except RuntimeError as error:
        raise InputError(
            f'--device is {device}; JAX finds no such device here ({error}).'
        ) from error
    keep_compiled()
    if reference.endswith('.npz'):
        dump = Dump(reference)
        _check_recorded(reference, dump, config, pictures, network.config.scale)
    else:
        own = None if graph == 'deploy' else resolve_weights(checkpoint)
        dump = references.run_reference(network, reference, own, config, pictures)
    with jax.default_device(place):
        report = compare(network, dump, CompareConfig(bound=bound))
    print(report.text(layers=layers))
    if json:
        write_text(json, report.json())
    if html:
        write_text(html, as_html(report))
    return 0 if report.equal else 1


def _network(checkpoint: str, graph: str) -> Network:
    network = load(checkpoint)
    if graph == 'deploy':
        return network.fold()
    if network.graph == 'deploy':
        if graph != 'auto':
            raise InputError(
                f'{checkpoint} is of a deploy graph, which cannot be {graph}: leave out --graph.'
            )
        return network
    return dataclasses.replace(network, graph='expanded' if graph == 'auto' else graph)


def _check_recorded(
    name: str,
    dump: Dump,
    config: references.ReferenceConfig,
    pictures: Mapping[str, np.ndarray],
    scale: int,
) -> None:
    """Raise InputError if a dump is not that of a reference which ran with these options."""
    steps = len(dump.arrays.get('train/float64/steps/loss', ()))
    differ = {
        '--python': config.python != references.ReferenceConfig.python,
        '--arg': bool(config.arguments),
        '--stub': bool(config.stubs),
        '--gradients': config.gradients and 'train/float64/out' not in dump.arrays,
        f'--steps {config.steps} (there are {steps})': config.steps not in (0, steps),
    }
    for label, hr in pictures.items():
        recorded = dump.arrays.get(f'original/{label}', np.zeros(0))
        differ[f'--images {label}'] = not np.array_equal(recorded, references.cropped(hr, scale))
    if options := [option for option, differs in differ.items() if differs]:
        raise InputError(
            f'{name} was recorded without {", ".join(options)}: leave that out, or write the probe '
            'with it (--write-probe) and run it again.'
        )


def _argument(text: str) -> tuple[str, object]:
    """'upscale=4' -> ('upscale', 4); what is not a Python literal is a string."""
    name, equals, value = text.partition('=')
    if not (equals and name.isidentifier()):
        raise InputError(f'--arg {text!r} is not KEY=VALUE.')
    try:
        return name, ast.literal_eval(value)
    except references.NOT_LITERAL:
        return name, value


def main(args: Sequence[str]) -> int:
    """Run the command; the exit code."""
    try:
        return tyro.cli(parity, prog='fmen-jax parity', args=args)
    except (FMENError, OSError) as error:  # 1 would mean that the implementations differ
        print(f'error: {error}', file=sys.stderr)
        return 2
    except Exception:
        if os.environ.get('JAX_PLATFORMS'):
            jax.default_backend()  # raises what fmen_jax.cli explains if JAX cannot start
        traceback.print_exc()
        return 2
