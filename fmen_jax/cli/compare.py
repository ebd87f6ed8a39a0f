"""`fmen-jax compare`."""

import dataclasses
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tqdm
import tyro
from tyro.conf import arg

from fmen_jax.data.pairs import find_pairs
from fmen_jax.errors import InputError, check_range, require
from fmen_jax.evaluation import cost_table, protocols, scoring
from fmen_jax.files import check_extension, check_target, check_utf8, labels_of, write_text
from fmen_jax.images.read import RGB8_EXTENSIONS
from fmen_jax.images.write import write_rgb8
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.models import zoo
from fmen_jax.network import load
from fmen_jax.runtime.compilation import keep_compiled


def compare(
    weights: Annotated[list[str], arg(aliases=['-w', '--networks'])] = [],  # noqa: B006
    sizes: list[str] = ['256x256', '320x180'],  # noqa: B006
    data: Annotated[Path | None, arg(aliases=['-d'])] = None,
    rounds: int = 10,
    markdown: Path | None = None,
    json: Path | None = None,
    plot: Path | None = None,
) -> int:
    """Compare what networks cost: parameters, FLOPs, activations, memory, and time in turn.

    Args:
      weights: Checkpoints, names of weights, or names of networks (fmen_s, fmen, e_rfdn, rlfn);
        the first is the reference of the ratios. By default all networks, at x4.
      sizes: LR sizes, width x height.
      data: Benchmark folder on which to measure the PSNR (protocol y) of networks with weights.
      rounds: Number of times that each network runs.
      markdown: File for the table.
      json: File for the rows of the table.
      plot: Picture file for a plot of PSNR against time at the first size. Needs data, and weights
        for every network.
    """
    if not sizes:
        raise InputError('--sizes has no values; expected one or more, such as 320x180.')
    extents = [_size(text) for text in sizes]
    check_range('--rounds', rounds, least=1)
    names = weights or list(zoo.NETWORKS)
    if plot and (data is None or any(name in zoo.NETWORKS for name in names)):
        raise InputError('--plot needs --data, and weights for every network, for the PSNR.')
    if plot:
        require('matplotlib', 'plots', 'a plot')
        check_extension(plot, RGB8_EXTENSIONS, 'an image')
        check_utf8(plot)
    for path in filter(None, (markdown, json, plot)):
        check_target(path)
    keep_compiled()
    rule = protocols.protocol('y')
    entries, work = [], []
    for name, label in zip(names, labels_of(names), strict=True):
        if name in zoo.NETWORKS:
            entries.append(cost_table.CostEntry(name, zoo.config(name)))
            continue
        net = load(name).fold()
        if data:
            upscaler, pairs = Upscaler(net), find_pairs(data, net.config.scale)
            scoring.check(pairs, scale=upscaler.scale, protocol=rule)
            work.append((len(entries), upscaler, pairs))
        entries.append(cost_table.CostEntry(label, net.config, net.variables))
    for i, upscaler, pairs in work:
        scores = scoring.evaluate(upscaler, pairs, scale=upscaler.scale, protocol=rule)
        psnr = statistics.mean(score.psnr for score in scores)
        entries[i] = dataclasses.replace(entries[i], psnr=psnr)
    rows = []
    with tqdm.tqdm(total=len(extents) * rounds, unit='round', disable=None) as bar:
        for height, width in extents:
            rows += cost_table.compare(entries, height, width, rounds=rounds, report=bar.update)
    table = cost_table.as_markdown(rows)
    if markdown:
        write_text(markdown, table)
    if json:
        write_text(json, cost_table.as_json(rows))
    if plot and data:
        picture = cost_table.draw(rows[: len(entries)], data.resolve().name)
        write_rgb8(plot, picture)
    print(table)
    return 0


def _size(text: str) -> tuple[int, int]:
    """'320x180' -> (height, width) = (180, 320)."""
    match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text)
    if not match:
        raise InputError(f'{text!r} is not a size; expected width x height, such as 320x180.')
    return int(match[2]), int(match[1])


def main(args: Sequence[str]) -> int:
    """Run the command; the exit code."""
    return tyro.cli(compare, prog='fmen-jax compare', args=args)
