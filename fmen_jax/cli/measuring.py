"""Verbs that measure: evaluate, compare."""

import functools
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from fmen_jax.errors import InputError, require


def evaluate(
    data: Annotated[list[Path], arg(aliases=['-d'])],
    weights: Annotated[list[str], arg(aliases=['-w'])] = ['fmen_s_x4'],  # noqa: B006
    protocol: Annotated[str, arg(aliases=['-p'])] = 'y',
    json: Path | None = None,
    csv: Path | None = None,
    markdown: Path | None = None,
    sheet: Path | None = None,
) -> int:
    """Measure PSNR and SSIM of checkpoints on benchmark folders.

    Args:
      weights: Checkpoints, or names of weights, by default the package's for x4; each is measured
        at its own scale.
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
    from fmen_jax.data import images
    from fmen_jax.data.pairs import find_pairs
    from fmen_jax.evaluation import benchmark, protocols, report
    from fmen_jax.evaluation.sheet import Sheet
    from fmen_jax.files import check_ending, write_text
    from fmen_jax.inference.upscaler import Upscaler
    from fmen_jax.runtime.compilation import keep_compiled

    rule = protocols.protocol(protocol)
    contact = Sheet() if sheet else None
    if sheet:
        check_ending(sheet, images.ENDINGS, 'a picture')
    keep_compiled()
    upscalers = {name: Upscaler(pretrained.load(name)) for name in weights}
    work = [
        (_label(name, weights), _label(folder, data), upscaler, find_pairs(folder, scale))
        for name, upscaler in upscalers.items()
        for folder in data
        for scale in [upscaler.scale]
    ]
    for *_, upscaler, pairs in work:
        benchmark.check(pairs, scale=upscaler.scale, protocol=rule)
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

    from fmen_jax.data import images
    from fmen_jax.data.pairs import find_pairs
    from fmen_jax.evaluation import benchmark, comparison, protocols
    from fmen_jax.files import check_ending, write_text
    from fmen_jax.inference.upscaler import Upscaler
    from fmen_jax.models import zoo
    from fmen_jax.pretrained import load
    from fmen_jax.runtime.compilation import keep_compiled

    extents = [_size(text) for text in sizes]
    names = networks or list(zoo.NETWORKS)
    if plot and (data is None or any(name in zoo.NETWORKS for name in names)):
        raise InputError('--plot needs --data, and --networks with weights, to have a PSNR.')
    if plot:
        require('matplotlib', 'plots', 'a plot')
        check_ending(plot, images.ENDINGS, 'a picture')
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
