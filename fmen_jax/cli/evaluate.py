"""`fmen-jax evaluate`."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tqdm
import tyro
from tyro.conf import arg

from fmen_jax.data.pairs import find_pairs
from fmen_jax.evaluation import protocols, report, scoring
from fmen_jax.evaluation.contact_sheet import Sheet
from fmen_jax.files import check_extension, write_text
from fmen_jax.images.read import RGB8_EXTENSIONS
from fmen_jax.images.write import write_rgb8
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
    contact = Sheet() if sheet else None
    if sheet:
        check_extension(sheet, RGB8_EXTENSIONS, 'an image')
    keep_compiled()
    upscalers = {name: Upscaler(load(name, allow_nonfinite=allow_nonfinite)) for name in weights}
    work = [
        (_label(name, weights), _label(folder, data), upscaler, find_pairs(folder, scale))
        for name, upscaler in upscalers.items()
        for folder in data
        for scale in [upscaler.scale]
    ]
    for *_, upscaler, pairs in work:
        scoring.check(pairs, scale=upscaler.scale, protocol=rule)
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
    print(report.as_markdown(results))
    for path, write in (
        (json, report.as_json),
        (csv, report.as_csv),
        (markdown, report.as_markdown),
    ):
        if path:
            write_text(path, write(results))
    if sheet and contact:
        write_rgb8(sheet, contact.draw())
    return 0


def _label(path: str | Path, among: Sequence[str | Path]) -> str:
    """The last name of a path, or all of it where another one ends alike."""
    name = Path(path).stem if isinstance(path, str) else path.resolve().name
    alike = [other for other in among if Path(other).resolve().stem == Path(name).stem]
    return name if len(alike) == 1 else str(path)


def main(args: Sequence[str]) -> int:
    """Run the command; the exit code."""
    return tyro.cli(evaluate, prog='fmen-jax evaluate', args=args)
