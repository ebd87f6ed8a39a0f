"""The command line: one function per verb, thin; the work is in the packages."""

import dataclasses
import datetime
import functools
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from fmen_jax.download import PUBLISHED
from fmen_jax.errors import FMENError, InputError


def upscale(
    inputs: Positional[list[Path]],
    output: Annotated[Path, arg(aliases=['-o'])],
    weights: Annotated[str, arg(aliases=['-w'])],
) -> int:
    """Upscale pictures: 8-bit RGB or gray PNG, JPEG, WebP and TIFF.

    Args:
      inputs: Pictures, and folders of pictures.
      output: A file if it ends like a picture, else a folder, where names get _x4.
      weights: A checkpoint (.pt, .pth, .safetensors), or the name of published weights, which are
        downloaded at their first use: see `fmen-jax download --help`.
    """
    from fmen_jax import pretrained
    from fmen_jax.compiler import keep_compiled
    from fmen_jax.inference import jobs
    from fmen_jax.inference.upscaler import Upscaler

    keep_compiled()
    upscaler = Upscaler(pretrained.load(weights))
    items = jobs.plan(inputs, output, scale=upscaler.scale)
    failed = 0
    for result in jobs.run(items, upscaler):
        if result.error:
            failed += 1
            print(f'error: {result.error}', file=sys.stderr)
        else:
            sizes = ' -> '.join(f'{w}x{h}' for w, h in (result.size, result.new_size))
            print(f'{result.item.target}  {sizes}', flush=True)
    if failed:
        print(f'{failed} of {len(items)} pictures failed.', file=sys.stderr)
    return 1 if failed else 0


def info(file: Positional[str]) -> int:
    """Describe a checkpoint: its network, found in key names and shapes, and its cost.

    Args:
      file: A checkpoint (.pt, .pth, .safetensors), or the name of published weights.
    """
    from fmen_jax import pretrained

    print(pretrained.describe(file))
    return 0


def download(
    name: Positional[Literal[tuple(PUBLISHED)]],  # pyright: ignore[reportInvalidTypeForm]
    url: str | None = None,
) -> int:
    """Download published weights to the cache, checked by SHA-256; an interrupted one goes on.

    Args:
      name: Which.
      url: Another address of the same file, such as a mirror.
    """
    import tqdm

    from fmen_jax.download import download

    with tqdm.tqdm(unit='B', unit_scale=True, desc=name, leave=False) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total or None
            bar.update(done - bar.n)

        path = download(name, url=url, report=report)
    print(path)
    return 0


def evaluate(
    weights: Annotated[list[str], arg(aliases=['-w'])],
    data: Annotated[list[Path], arg(aliases=['-d'])],
    protocol: Annotated[str, arg(aliases=['-p'])] = 'y',
    json: Path | None = None,
    csv: Path | None = None,
    markdown: Path | None = None,
    sheet: Path | None = None,
) -> int:
    """Measure PSNR and SSIM of checkpoints on benchmark folders.

    Args:
      weights: Checkpoints, or names of published weights; each is measured at its own scale.
      data: Benchmark folders: HR/ beside LR_bicubic/X4/, image_SRF_4/, GTmod12/ beside LRbicx4/, or
        HR pictures alone, whose LR is then made by MATLAB's imresize.
      protocol: y (BT.601 luma, crop = scale; most papers), edsr-div2k (RGB, crop scale + 6) or
        ntire-esr (RGB, crop 4).
      json: Write the scores there: an object, or a list of them if there are many results.
      csv: Write the scores there.
      markdown: Write the tables there; they are printed in any case.
      sheet: Write a contact sheet there, a picture: LR, bicubic, every network, HR.
    """
    import tqdm

    from fmen_jax import pretrained
    from fmen_jax.compiler import keep_compiled
    from fmen_jax.data import images
    from fmen_jax.data.pairs import find_pairs
    from fmen_jax.evaluation import benchmark, protocols, report
    from fmen_jax.evaluation.sheet import Sheet
    from fmen_jax.files import write_text
    from fmen_jax.inference.upscaler import Upscaler

    rule = protocols.protocol(protocol)
    contact = Sheet() if sheet else None
    if sheet:
        images.check_ending(sheet)
    keep_compiled()
    upscalers = {name: Upscaler(pretrained.load(name)) for name in weights}
    work = [
        (_label(name, weights), _label(folder, data), upscaler, find_pairs(folder, scale))
        for name, upscaler in upscalers.items()
        for folder in data
        for scale in [upscaler.scale]
    ]
    results = []
    with tqdm.tqdm(total=sum(len(pairs) for *_, pairs in work), unit='picture') as bar:
        for name, folder, upscaler, pairs in work:
            bar.set_description(f'{name} on {folder}')
            inspect = functools.partial(contact.add, name, folder) if contact else None
            scores = []
            for score in benchmark.evaluate(
                upscaler, pairs, scale=upscaler.scale, protocol=rule, inspect=inspect
            ):
                scores.append(score)
                bar.update()
            results.append(benchmark.Result(name, folder, upscaler.scale, rule, scores))
    print(report.as_markdown(results))
    for path, write in (
        (json, report.as_json),
        (csv, report.as_csv),
        (markdown, report.as_markdown),
    ):
        if path:
            write_text(path, write(results))
    if sheet and contact:
        images.write(sheet, images.Picture(contact.draw()))
    return 0


def prepare(
    folders: Positional[list[Path]],
    scale: Annotated[int, arg(aliases=['-s'])],
    output: Annotated[Path | None, arg(aliases=['-o'])] = None,
    broken: Literal['refuse', 'skip'] = 'refuse',
) -> int:
    """Decode pictures once for training, in both sizes; what is prepared already stays.

    Args:
      folders: HR pictures, or pairs in one of the layouts that `evaluate` knows.
      scale: The factor between HR and LR.
      output: Where to put it, for one folder; by default in the cache, where `train` finds it.
      broken: What to do with pictures that cannot be read.
    """
    import tqdm

    from fmen_jax.data import sources

    if output and len(folders) > 1:
        raise InputError(f'{output} is one folder, but there are {len(folders)} to prepare.')
    for folder in folders:
        with tqdm.tqdm(unit='picture', desc=folder.name) as bar:

            def report(done: int, total: int, bar: tqdm.tqdm = bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            path = sources.prepare(folder, scale, output=output, broken=broken, report=report)
        source = sources.open_source(path)
        for fault in source.skipped:
            print(f'skipped: {fault}', file=sys.stderr)
        print(f'{path}  {len(source.entries)} pictures')
    return 0


def train(args: Sequence[str]) -> int:
    """Train a network: fmen-jax train configs/NAME.py --workdir DIR [options].

    Options override the experiment's settings; `fmen-jax train configs/NAME.py --help` lists them.
    The same command goes on where the run stopped; SIGTERM and Ctrl-C save and leave.
    """
    from fmen_jax.config import Experiment, load_experiment

    @dataclasses.dataclass(frozen=True)
    class Train:
        """Train a network; the same command goes on where a run in the workdir stopped."""

        workdir: Path
        """Gets config.json, metrics.jsonl, checkpoints, and weights.safetensors at the end."""
        experiment: Annotated[Experiment, arg(name='')]

    if not args or args[0].startswith('-'):
        print('usage: fmen-jax train configs/NAME.py --workdir DIR [options]', file=sys.stderr)
        return 2
    experiment = load_experiment(Path(args[0]))
    given = tyro.cli(
        Train,
        args=args[1:],
        prog=f'fmen-jax train {args[0]}',
        default=Train(tyro.MISSING, experiment),
    )

    from fmen_jax.compiler import keep_compiled
    from fmen_jax.inference.upscaler import Upscaler
    from fmen_jax.training import loop

    keep_compiled()
    weights = loop.train(
        given.experiment,
        given.workdir,
        upscaler=Upscaler,
        report=lambda r: print(_line(r), flush=True),
    )
    print(weights or f'stopped; the same command goes on from the checkpoint in {given.workdir}')
    return 0 if weights else 130


def _line(record: dict[str, Any]) -> str:
    """A record of the training log, for people."""
    if 'validation_psnr' in record:
        return f'step {record["step"]}  validation {record["validation_psnr"]:.3f} dB'
    left = datetime.timedelta(seconds=round(record['seconds_left']))
    return (
        f'step {record["step"]}  loss {record["loss"]:.4f}  '
        f'{record["images_per_second"]:.1f} images/s  '
        f'waited for data {record["waited_for_data"]:.0%}  {left} left'
    )


def _label(path: str | Path, among: Sequence[str | Path]) -> str:
    """The last name of a path, or all of it where another one ends alike."""
    name = Path(path).stem if isinstance(path, str) else path.resolve().name
    alike = [other for other in among if Path(other).resolve().stem == Path(name).stem]
    return name if len(alike) == 1 else str(path)


def compare(
    networks: Annotated[list[str], arg(aliases=['-w', '--weights'])] = [],  # noqa: B006
    sizes: list[str] = ['256x256', '320x180'],  # noqa: B006
    data: Annotated[Path | None, arg(aliases=['-d'])] = None,
    rounds: int = 10,
    markdown: Path | None = None,
    json: Path | None = None,
    plot: Path | None = None,
) -> int:
    """Compare what networks cost: parameters, FLOPs, activations, memory and time, in turn.

    Args:
      networks: Checkpoints, names of published weights, or names of the zoo; the first is the
        measure of the ratios. By default every network of the zoo, at x4.
      sizes: LR sizes, width x height.
      data: A benchmark folder on which to measure the PSNR (protocol y) of those with weights.
      rounds: How often each runs.
      markdown: Write the table there; it is printed in any case.
      json: Write the rows there.
      plot: Write a plot there, a picture: PSNR against time at the first size. Needs data, and
        weights for every network.
    """
    import tqdm

    from fmen_jax.compiler import keep_compiled
    from fmen_jax.data import images
    from fmen_jax.data.pairs import find_pairs
    from fmen_jax.evaluation import benchmark, comparison, protocols
    from fmen_jax.files import write_text
    from fmen_jax.inference.upscaler import Upscaler
    from fmen_jax.models import zoo
    from fmen_jax.pretrained import load

    extents = [_size(text) for text in sizes]
    names = networks or list(zoo.NETWORKS)
    if plot and (data is None or any(name in zoo.NETWORKS for name in names)):
        raise InputError('--plot needs --data, and --networks with weights, to have a PSNR.')
    if plot:
        images.check_ending(plot)
    keep_compiled()
    entries = []
    for name in names:
        if name in zoo.NETWORKS:
            entries.append(comparison.Entry(name, zoo.config(name)))
            continue
        net = load(name).fold()
        psnr = None
        if data:
            scores = benchmark.evaluate(
                Upscaler(net),
                find_pairs(data, net.config.scale),
                scale=net.config.scale,
                protocol=protocols.protocol('y'),
            )
            psnr = statistics.mean(score.psnr for score in scores)
        entries.append(comparison.Entry(Path(name).stem, net.config, net.variables, psnr))
    rows = []
    with tqdm.tqdm(total=len(extents) * rounds, unit='round') as bar:
        for height, width in extents:
            rows += comparison.compare(entries, height, width, rounds=rounds, report=bar.update)
    table = comparison.as_markdown(rows)
    print(table)
    if markdown:
        write_text(markdown, table)
    if json:
        write_text(json, comparison.as_json(rows))
    if plot and data:
        picture = comparison.draw(rows[: len(entries)], data.name)
        images.write(plot, images.Picture(picture))
    return 0


def _size(text: str) -> tuple[int, int]:
    """'320x180' -> (height, width) = (180, 320)."""
    match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text)
    if not match:
        raise InputError(f'{text!r} is not a size; expected width x height, such as 320x180.')
    return int(match[2]), int(match[1])


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, with 1 if something failed, with 2 on wrong usage."""
    verbs = {
        'upscale': upscale,
        'info': info,
        'download': download,
        'evaluate': evaluate,
        'compare': compare,
        'prepare': prepare,
        'train': functools.partial(train, []),
    }
    args = list(sys.argv[1:] if args is None else args)
    try:
        if args[:1] == ['train']:  # its options depend on the experiment's file
            sys.exit(train(args[1:]))
        code = tyro.extras.subcommand_cli_from_dict(
            verbs, prog='fmen-jax', description='FMEN super-resolution in JAX.', args=args
        )
    except (FMENError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        code = 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
