"""`fmen-jax evaluate`."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tqdm
import tyro
from tyro.conf import arg

from fmen_jax.data.pairs import find_pairs
from fmen_jax.errors import InputError
from fmen_jax.evaluation import protocols, report, scoring
from fmen_jax.evaluation.contact_sheet import Sheet, sheet_size
from fmen_jax.files import check_extension, check_target, check_utf8, labels_of, write_text
from fmen_jax.images.read import RGB8_EXTENSIONS
from fmen_jax.images.write import check_fits, write_rgb8
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.network import load
from fmen_jax.runtime.compilation import keep_compiled


def evaluate(
    data: Annotated[list[Path], arg(aliases=['-d'])],
    weights: Annotated[list[str], arg(aliases=['-w'])] = ['fmen_s_x4'],  # noqa: B006
    protocol: Annotated[str, arg(aliases=['-p'])] = 'y',
    json: Path | None = None,
    csv: Path | None = None,
    markdown: Path | None = None,
    sheet: Path | None = None,
    allow_nonfinite: bool = False,
) -> int:
    """Measure PSNR and SSIM of networks on benchmark folders, and print a table.

    Args:
      weights: Checkpoints, or names of weights in the package or of published weights; each is
        measured at its own scale.
      data: Benchmark folders: HR/ beside LR_bicubic/X4/, image_SRF_4/, GTmod12/ beside LRbicx4/, or
        HR pictures alone, whose LR pictures are then made by MATLAB's imresize.
      protocol: y (BT.601 luma, crop = scale; most papers), edsr-div2k (RGB, crop = scale + 6) or
        ntire-esr (RGB, crop = 4).
      json: File for the scores: an object, or a list of objects if there are several results.
      csv: File for the scores.
      markdown: File for the table.
      sheet: Picture file for a contact sheet: LR, bicubic, every network, HR.
      allow_nonfinite: Accept weights with NaN or infinity, which are refused otherwise.
    """
    rule = protocols.protocol(protocol)
    for option, values in (('--data', data), ('--weights', weights)):
        if not values:
            raise InputError(f'{option} has no values; expected one or more.')
    if len({folder.resolve() for folder in data}) < len(data):
        raise InputError(
            f'--data is {" ".join(map(str, data))}; expected each folder once: omit repeated ones.'
        )
    contact = Sheet() if sheet else None
    if sheet:
        check_extension(sheet, RGB8_EXTENSIONS, 'an image')
        check_utf8(sheet)
    for path in filter(None, (json, csv, markdown, sheet)):
        check_target(path)
    keep_compiled()
    weights = list(dict.fromkeys(weights))
    upscalers = [Upscaler(load(name, allow_nonfinite=allow_nonfinite)) for name in weights]
    work = [
        (name, label, upscaler, find_pairs(folder, upscaler.scale))
        for name, upscaler in zip(labels_of(weights), upscalers, strict=True)
        for label, folder in zip(labels_of(map(str, data)), data, strict=True)
    ]
    for *_, upscaler, pairs in work:
        scoring.check(pairs, scale=upscaler.scale, protocol=rule)
    if sheet:
        rows = {(label, upscaler.scale): len(pairs) for _, label, upscaler, pairs in work}
        check_fits(sheet, *sheet_size(sum(rows.values()), len(weights)))
    results = []
    with tqdm.tqdm(
        total=sum(len(pairs) for *_, pairs in work), unit='picture', disable=None
    ) as bar:
        for name, folder, upscaler, pairs in work:
            bar.set_description(f'{name} on {folder}')
            inspect = functools.partial(contact.add, name, folder) if contact else None
            scores = []
            for score in scoring.evaluate(
                upscaler, pairs, scale=upscaler.scale, protocol=rule, inspect=inspect
            ):
                scores.append(score)
                bar.update()
            results.append(scoring.Result(name, folder, upscaler.scale, rule, scores))
    for path, write in (
        (json, report.as_json),
        (csv, report.as_csv),
        (markdown, report.as_markdown),
    ):
        if path:
            write_text(path, write(results))
    if sheet and contact:
        write_rgb8(sheet, contact.draw())
    print(report.as_markdown(results))
    return 0


def main(args: Sequence[str]) -> int:
    """Run the command; the exit code."""
    return tyro.cli(evaluate, prog='fmen-jax evaluate', args=args)
