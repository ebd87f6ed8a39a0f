"""All diagnostics of one network on a few pictures, as sections of a page and as numbers.

Pictures are [H, W, 3] uint8, RGB.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from fmen_jax.errors import InputError
from fmen_jax.evaluation.protocols import protocol
from fmen_jax.evaluation.scoring import upscale_bicubic
from fmen_jax.images.bicubic import imresize
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.network import Network
from fmen_jax.research import drawing
from fmen_jax.research.activations import (
    Observed,
    channel_ranges,
    mean_map,
    observe,
    range_of,
    saturation_of,
)
from fmen_jax.research.attribution import BlurPath, attribute
from fmen_jax.research.comparison import find_difference, paired
from fmen_jax.research.kernels import gains, kernels_of
from fmen_jax.research.page import Chart, Picture, PictureRow, Section, Table
from fmen_jax.research.receptive_field import effective_receptive_field
from fmen_jax.research.spectrum import decibels, ring_power

SHARES = (0.5, 0.95, 0.99)
"""Shares of the effective receptive field whose sides are reported."""

_BASELINE = 'bicubic'
_PROTOCOL = protocol('y')
_WINDOW = 16  # side in HR pixels of the attributed window, as in the paper
_UNBOUNDED = 97  # side in LR pixels for the receptive field of a network that sees everything


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is computed. `QUICK` is for minutes on a slow machine."""

    detailed: int = 4
    """Number of pictures whose maps and attribution are drawn."""
    map_size: int = 160
    """Largest side in LR pixels of the part in the middle whose maps are drawn."""
    attribution_size: int = 64
    """Largest side in LR pixels of the part that an attribution map shows; 64, as in the paper for
    x4. The diffusion index depends on it."""
    path: BlurPath = dataclasses.field(default_factory=BlurPath)
    """Path of the attribution."""
    receptive_images: int = 50
    """Number of crops over which the effective receptive field is averaged."""
    rings: int = 48
    """Number of rings of a spectrum."""
    kernel_size: int = 32
    """Side in pixels of the images on which the singular values of kernels are computed."""
    crop: int = 96
    """Side in HR pixels of the crops that compare two networks."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 1:
                raise InputError(f'{field.name} is {value}; expected 1 or more.')


QUICK = Settings(detailed=1, map_size=96, receptive_images=8, kernel_size=16)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network under a name."""

    name: str
    network: Network

    @cached_property
    def folded(self) -> Network:
        """The deploy graph, which is what is inspected."""
        return self.network.fold()

    @cached_property
    def upscaler(self) -> Upscaler:
        """The network for whole pictures."""
        return Upscaler(self.folded)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A picture to inspect a network with."""

    name: str
    lr: np.ndarray
    """LR picture [H, W, 3]."""
    hr: np.ndarray | None = None
    """HR picture [s H, s W, 3], if known."""


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What was found."""

    sections: list[Section]
    results: dict[str, Any]
    """Numbers by section, made of dicts, lists, strings and floats; to be written as JSON."""


def make_sample(name: str, pixels: np.ndarray, scale: int, *, is_lr: bool = False) -> Sample:
    """Return a picture as a sample: as HR, cropped and downscaled by MATLAB's imresize, or as LR.

    Raises:
      InputError: If the picture is too small to be upscaled and scored.
    """
    least = 16 if is_lr else 16 * scale
    if min(pixels.shape[:2]) < least:
        raise InputError(
            f'{name}: {pixels.shape[1]}x{pixels.shape[0]} pixels are too few; expected {least} or '
            f'more in width and height, at x{scale}.'
        )
    if is_lr:
        return Sample(name, pixels)
    height, width = (size // scale * scale for size in pixels.shape[:2])
    hr = pixels[:height, :width]
    return Sample(name, imresize(hr, 1 / scale), hr)


def inspect(
    subject: Subject,
    samples: Sequence[Sample],
    *,
    against: Subject | None = None,
    settings: Settings = Settings(),
    window: tuple[int, int] | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> Inspection:
    """Run all diagnostics.

    Args:
      subject: the network.
      samples: pictures; the first ones are also drawn in detail.
      against: a second network of the same scale. If omitted, the baseline is bicubic upscaling.
      settings: how much is computed.
      window: row and column in HR pixels of the 16x16 window that is attributed. If omitted, the
        window with the strongest edges of each picture.
      say: function called with the name of each part when it begins.

    Raises:
      InputError: If there are no samples, two networks have the same name or one that of the
        baseline, the scales differ, or the window lies outside a picture.
    """
    names = [subject.name, *([against.name] if against else []), _BASELINE]
    if len(set(names)) < len(names):
        raise InputError(
            f'the names in the report would be {", ".join(names)}; expected that all of them '
            'differ. Compare with another checkpoint, or give its file another name.'
        )
    scale = subject.network.config.scale
    if not samples:
        raise InputError('no pictures; expected at least one.')
    if against and against.network.config.scale != scale:
        raise InputError(
            f'{against.name} is x{against.network.config.scale}, but {subject.name} is x{scale}: '
            'networks are compared at one scale.'
        )
    detailed = samples[: settings.detailed]
    if window is not None:
        for sample in detailed:
            _check_window(sample, window, scale)
    say('inside the network')
    seen = {s.name: _observe(subject, s, settings.map_size) for s in detailed}
    parts: list[tuple[str, tuple[Section, Any] | None]] = [
        ('maps', _maps(seen)),
        ('activations', _activations(seen)),
    ]
    say('folded kernels')
    order = list(next(iter(seen.values())).outputs)
    parts.append(('kernels', _kernels(subject, order, settings.kernel_size)))
    subjects = [subject, *([against] if against else [])]
    say('effective receptive field')
    parts.append(('receptive_field', _receptive_field(subjects, samples, settings)))
    say('attribution')
    parts.append(('attribution', _attribution(subjects, detailed, settings, window)))
    if all(sample.hr is not None for sample in samples):
        say('scores and spectra')
        outputs = _outputs(subject, against, samples)
        first = [('comparison', _comparison(outputs, settings.crop))]
        parts = [*first, ('spectrum', _spectrum(outputs, scale, settings.rings)), *parts]
    found = {name: part for name, part in parts if part}
    return Inspection(
        [section for section, _ in found.values()],
        {name: data for name, (_, data) in found.items()},
    )


def _check_window(sample: Sample, window: tuple[int, int], scale: int) -> None:
    # the detector reads one more pixel below and to the right
    last = [scale * size - _WINDOW - 1 for size in sample.lr.shape[:2]]
    if not all(0 <= place <= most for place, most in zip(window, last, strict=True)):
        raise InputError(
            f'the window begins at row {window[0]}, column {window[1]}, outside of picture '
            f'{sample.name}; expected 0 to {last[0]} and 0 to {last[1]}.'
        )


# The inside of the network


def _middle(picture: np.ndarray, side: int) -> np.ndarray:
    height, width = picture.shape[:2]
    row, column = max(height - side, 0) // 2, max(width - side, 0) // 2
    return picture[row : row + side, column : column + side]


def _observe(subject: Subject, sample: Sample, side: int) -> Observed:
    net = subject.folded
    x = _middle(sample.lr, side)[None].astype(np.float32)
    return observe(net.module, net.variables, x)


def _maps(seen: Mapping[str, Observed]) -> tuple[Section, Any] | None:
    """Draw the mean maps of the attention blocks, as in Fig. 8 of the paper."""
    rows = []
    for sample, observed in seen.items():
        for block, attention in observed.attention.items():
            maps = {
                'input': observed.inputs[block],
                'attention': attention,
                'output': observed.outputs[block],
            }
            pictures = [
                Picture(
                    f'map_{_file(sample)}_{_file(block)}_{kind}',
                    f'{kind} of {block}',
                    drawing.encode_png(drawing.heat((mean_map(values[0]) + 1) / 2)),
                )
                for kind, values in maps.items()
            ]
            rows.append(PictureRow(f'{sample}: {block}', pictures))
    if not rows:
        return None
    text = (
        'Mean over the channels at the input, in the attention map and at the output of each '
        'attention block, each scaled to its own range: black is the least, orange the middle, '
        'white the most. An attention that works shows edges and texture; a flat map means that '
        'the block scales all pixels alike.'
    )
    return Section('Feature and attention maps', text, rows), {
        'pictures': list(seen),
        'blocks': list(next(iter(seen.values())).attention),
    }


def _activations(seen: Mapping[str, Observed]) -> tuple[Section, Any]:
    """Report ranges of all modules and the saturation of the attention."""

    def joined(part: str, path: str) -> np.ndarray:
        arrays = [getattr(observed, part)[path] for observed in seen.values()]
        return np.concatenate([a.reshape(-1, a.shape[-1]) for a in arrays])

    first = next(iter(seen.values()))
    outputs = {path: joined('outputs', path) for path in first.outputs}
    found = {path: range_of(values) for path, values in outputs.items()}
    blocks = [path for path in found if '/' not in path]
    attention = {path: saturation_of(joined('attention', path)) for path in first.attention}
    chart = drawing.ranges(
        {path: (found[path].min, found[path].rms, found[path].max) for path in blocks},
        xlabel='smallest value, rms (dot) and largest value at the output of each block',
        scale='symlog',
    )
    parts: list[Any] = [
        Chart('activations', 'Range of the values of each block, in execution order.', chart)
    ]
    if attention:
        rows = [
            [path, f'{s.low:.1%}', f'{s.high:.1%}', f'{s.mean:.3f}', f'{s.std:.3f}']
            for path, s in attention.items()
        ]
        header = ['attention of', 'below 0.05', 'above 0.95', 'mean', 'std']
        parts.append(Table(header, rows))
    rows = [
        [path, f'{r.min:.4g}', f'{r.max:.4g}', f'{r.rms:.4g}', f'{r.outside_float16:.2%}']
        for path, r in found.items()
    ]
    header = ['module', 'min', 'max', 'rms', 'outside float16']
    parts.append(Table(header, rows, 'All modules'))
    text = (
        'Ranges say which blocks need attention in low precision: float16 ends at 65504. An '
        'attention value below 0.05 or above 0.95 is in the flat part of the sigmoid, where it '
        'hardly learns; a share near 100 % means that the block is stuck.'
    )
    data = {
        'ranges': {path: dataclasses.asdict(r) for path, r in found.items()},
        'channels': {
            path: [dataclasses.asdict(r) for r in channel_ranges(outputs[path])] for path in blocks
        },
        'attention': {path: dataclasses.asdict(s) for path, s in attention.items()},
    }
    return Section('Activations and saturation', text, parts), data


def _kernels(subject: Subject, order: Sequence[str], size: int) -> tuple[Section, Any]:
    """Report the singular values of all folded kernels, in the order of execution."""
    kernels = kernels_of(subject.folded.variables['params'])
    paths = sorted(kernels, key=lambda path: order.index(path) if path in order else len(order))
    found = {path: gains(kernels[path], size) for path in paths}
    chart = drawing.ranges(
        {path: (g.smallest, g.median, g.largest) for path, g in found.items()},
        xlabel='smallest, median (dot) and largest singular value',
    )
    text = (
        'Factors by which a convolution without its bias can scale an image, over all frequencies '
        'and mixtures of channels. A large largest value amplifies noise and rounding; a smallest '
        'value near 0 means that some mixture of channels is lost. Values around 1 keep what '
        'comes in.'
    )
    caption = f'Singular values on {size}x{size} pixels with periodic borders, in execution order.'
    section = Section('Folded kernels', text, [Chart('kernels', caption, chart)])
    return section, {path: dataclasses.asdict(g) for path, g in found.items()}


# What an output pixel depends on


def _receptive_field(
    subjects: Sequence[Subject], samples: Sequence[Sample], settings: Settings
) -> tuple[Section, Any]:
    pictures, rows, data = [], [], {}
    for subject in subjects:
        radius = subject.network.config.receptive_radius
        side = _UNBOUNDED if radius is None else 2 * radius + 3
        side = min(side, *(min(sample.lr.shape[:2]) for sample in samples))
        side -= 1 - side % 2  # odd, so that there is a pixel in the middle
        crops = _random_crops(samples, side, settings.receptive_images)
        field = effective_receptive_field(subject.folded, crops)
        sides = {f'{share:.0%}': field.side(share) for share in SHARES}
        exact = f'{field.radius} or more' if field.is_cut_off else str(field.radius)
        rows.append([subject.name, exact, *map(str, sides.values())])
        data[subject.name] = {
            'radius': field.radius,
            'is_cut_off': field.is_cut_off,
            'sides': sides,
            'images': len(crops),
            'image_size': side,
        }
        caption = f'{subject.name}: {side}x{side} LR pixels, white to black over five decades'
        image = drawing.encode_png(drawing.heat(drawing.log_scale(field.magnitude)))
        pictures.append(Picture(f'receptive_field_{_file(subject.name)}', caption, image))
    text = (
        'How much the central output pixel changes with each LR pixel around it, as the mean '
        'magnitude of the gradient. The radius is the distance of the farthest pixel that has any '
        'influence; the sides are those of the centered squares that hold 50, 95 and 99 % of it. A '
        'network whose 99 % square is much smaller than its whole field has depth that it does '
        'not use.'
    )
    header = ['network', 'radius, LR pixels', *(f'side of {share:.0%}' for share in SHARES)]
    return Section(
        'Effective receptive field', text, [PictureRow('', pictures), Table(header, rows)]
    ), data


def _random_crops(samples: Sequence[Sample], side: int, count: int) -> np.ndarray:
    """Return crops [count, side, side, 3] at random places, the same ones in each run."""
    generator = np.random.default_rng(0)
    crops = []
    for i in range(count):
        lr = samples[i % len(samples)].lr
        row, column = (int(generator.integers(size - side + 1)) for size in lr.shape[:2])
        crops.append(lr[row : row + side, column : column + side])
    return np.stack(crops)


def _attribution(
    subjects: Sequence[Subject],
    samples: Sequence[Sample],
    settings: Settings,
    window: tuple[int, int] | None,
) -> tuple[Section, Any]:
    scale, side = subjects[0].network.config.scale, _WINDOW
    rows, numbers, data = [], [], []
    for sample in samples:
        place = window or _strongest_edges(subjects[0].upscaler(sample.lr), side)
        size = min(settings.attribution_size, *sample.lr.shape[:2])
        row, column = (
            int(np.clip((start + side // 2) // scale - size // 2, 0, length - size))
            for start, length in zip(place, sample.lr.shape[:2], strict=True)
        )
        lr = sample.lr[row : row + size, column : column + size]
        inside = (place[0] - row * scale, place[1] - column * scale, side)
        zoom = 4
        big = drawing.enlarge(lr, zoom)
        frame = [round(value * zoom / scale) for value in inside]
        shown = [
            Picture(
                f'attribution_{_file(sample.name)}_lr',
                f'LR, {size}x{size} pixels, and the window',
                drawing.encode_png(drawing.outlined(big, *frame)),
            )
        ]
        for subject in subjects:
            found = attribute(subject.folded, lr, inside, path=settings.path)
            index, over = found.diffusion_index, drawing.overlay(lr, found.map)
            stem = f'attribution_{_file(sample.name)}_{_file(subject.name)}'
            caption = f'{subject.name}: DI {index:.2f}'
            shown += [
                Picture(stem, caption, drawing.encode_png(drawing.heat(found.map**0.5))),
                Picture(f'{stem}_overlay', f'{subject.name}, over LR', drawing.encode_png(over)),
            ]
            total = float(found.signed.sum())
            numbers.append([sample.name, subject.name, f'{index:.2f}', f'{size}x{size}'])
            numbers[-1] += [f'{found.gain:.0f}', f'{total:.0f}']
            data.append(
                {
                    'picture': sample.name,
                    'network': subject.name,
                    'diffusion_index': index,
                    'lr_size': size,
                    'window': {'row': place[0], 'column': place[1], 'side': side},
                    'gain': found.gain,
                    'sum_of_attributions': total,
                }
            )
        rows.append(PictureRow(sample.name, shown))
    text = (
        'Which LR pixels the edges inside the framed window of the output come from (LAM, Gu and '
        'Dong, CVPR 2021). The map shows the square root of the magnitude, white for the strongest '
        'pixel. The diffusion index DI is 0 if one pixel explains all and 100 if all pixels of the '
        'crop count alike: a larger one means that more of the surroundings is used. It depends on '
        'the size of the crop, which stands beside it. The attributions should sum to the change '
        'of the detector; the rest is the error of the finite number of steps.'
    )
    header = ['picture', 'network', 'DI', 'LR crop', 'change of the detector', 'sum']
    steps = {'steps': settings.path.steps, 'maps': data}
    return Section('Local attribution', text, [*rows, Table(header, numbers)]), steps


def _strongest_edges(output: np.ndarray, side: int) -> tuple[int, int]:
    """Return row and column of the window with the strongest edges, a multiple of 4 pixels."""
    step = 4
    places = [
        (row, column)
        for row in range(0, output.shape[0] - side - 1, step)
        for column in range(0, output.shape[1] - side - 1, step)
    ]
    picture = output.astype(np.float32)
    edges = np.zeros(picture.shape[:2])
    edges[:-1, :-1] = np.sqrt(
        np.square(np.diff(picture, axis=0)[:, :-1]) + np.square(np.diff(picture, axis=1)[:-1])
    ).sum(2)
    total = np.pad(edges.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    strength = [
        total[y + side, x + side] - total[y, x + side] - total[y + side, x] + total[y, x]
        for y, x in places
    ]
    return places[int(np.argmax(strength))]


# Against HR


@dataclasses.dataclass(frozen=True)
class _Outputs:
    """Outputs of both contenders for a picture, and their PSNR in dB."""

    name: str
    names: tuple[str, str]
    hr: np.ndarray
    ours: np.ndarray
    theirs: np.ndarray
    psnr: tuple[float, float]
    bicubic_psnr: float


def _outputs(
    subject: Subject, against: Subject | None, samples: Sequence[Sample]
) -> list[_Outputs]:
    found = []
    scale = subject.network.config.scale
    for sample in samples:
        assert sample.hr is not None
        target = sample.hr.astype(np.float64)
        bicubic = np.rint(upscale_bicubic(sample.lr, scale)).clip(0, 255).astype(np.uint8)
        ours = subject.upscaler(sample.lr)
        theirs = against.upscaler(sample.lr) if against else bicubic
        psnr = [
            float(_PROTOCOL.score(y.astype(np.float64), target, scale=scale).psnr)
            for y in (ours, theirs, bicubic)
        ]
        names = (subject.name, against.name if against else _BASELINE)
        found.append(
            _Outputs(sample.name, names, sample.hr, ours, theirs, (psnr[0], psnr[1]), psnr[2])
        )
    return found


def _comparison(outputs: Sequence[_Outputs], side: int) -> tuple[Section, Any]:
    ours, theirs = outputs[0].names
    found = paired({o.name: o.psnr[0] for o in outputs}, {o.name: o.psnr[1] for o in outputs})
    interval = '' if np.isnan(found.half_width) else f' ± {found.half_width:.3f}'
    parts: list[Any] = [
        Chart(
            'comparison',
            f'PSNR of {ours} minus that of {theirs}; mean {found.mean:+.3f}{interval} dB.',
            drawing.bars(found.differences, xlabel='difference in dB', unit=''),
        )
    ]
    by_name = {o.name: o for o in outputs}
    ranked = list(found.differences)
    for name, better in ((ranked[0], True), (ranked[-1], False)):
        o = by_name[name]
        row, column = find_difference(o.ours, o.theirs, o.hr, side, better=better)
        kind = 'best' if better else 'worst'
        captions = {
            'HR': o.hr,
            f'{ours}, {o.psnr[0]:.2f} dB': o.ours,
            f'{theirs}, {o.psnr[1]:.2f} dB': o.theirs,
        }
        pictures = [
            Picture(
                f'crop_{kind}_{number}',
                caption,
                drawing.encode_png(image[row : row + side, column : column + side]),
            )
            for number, (caption, image) in enumerate(captions.items())
        ]
        title = f'{name}: {found.differences[name]:+.2f} dB, the {kind} picture, where '
        title += f'{ours} is ahead the {"most" if better else "least"}'
        parts.append(PictureRow(title, pictures))
    table = [
        [o.name, f'{o.psnr[0]:.3f}', f'{o.psnr[1]:.3f}', f'{o.bicubic_psnr:.3f}']
        for o in (by_name[name] for name in ranked)
    ]
    header = ['picture', ours, theirs, _BASELINE]
    if theirs == _BASELINE:
        header, table = header[:3], [row[:3] for row in table]
    parts.append(Table(header, table, 'PSNR of every picture, dB'))
    text = (
        f'Protocol {_PROTOCOL}. The interval is that of the mean over pictures, with a confidence '
        'of 95 %: it says whether other pictures would give the same sign, not whether another '
        'training run would.'
    )
    data = {
        'protocol': str(_PROTOCOL),
        'ours': ours,
        'theirs': theirs,
        'differences': found.differences,
        'mean': found.mean,
        'half_width': found.half_width,
        'psnr': {o.name: {'ours': o.psnr[0], 'theirs': o.psnr[1], 'bicubic': o.bicubic_psnr}
                 for o in outputs},
    }  # fmt: skip
    return Section(f'{ours} against {theirs}', text, parts), data


def _spectrum(outputs: Sequence[_Outputs], scale: int, rings: int) -> tuple[Section, Any]:
    ours, theirs = outputs[0].names
    frequency = ring_power(np.zeros((rings, rings, 1)), rings).frequency

    def mean_power(image_of: Callable[[_Outputs], np.ndarray]) -> np.ndarray:
        powers = [ring_power(image_of(o), rings).value for o in outputs]
        # a small picture has no frequency in some rings
        known = ~np.isnan(powers)
        total = np.where(known, powers, 0).sum(0)
        return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)

    power = {
        'HR': mean_power(lambda o: o.hr.astype(float)),
        f'error of {ours}': mean_power(lambda o: o.ours.astype(float) - o.hr),
        f'error of {theirs}': mean_power(lambda o: o.theirs.astype(float) - o.hr),
    }
    nyquist = 1 / (2 * scale)
    below = frequency < nyquist

    def advantage(inside: np.ndarray) -> float:
        """Return how many dB less error power ours has in some rings, weighted by their size."""
        ours_power, theirs_power = (
            np.nansum((values * frequency)[inside]) for values in list(power.values())[1:]
        )
        return float(10 * np.log10(theirs_power / ours_power)) if ours_power else float('inf')

    styles = [(drawing.TEXT_COLOR, ':'), (drawing.OURS, '-'), (drawing.THEIRS, '--')]
    chart = drawing.lines(
        frequency,
        {
            name: drawing.Line(decibels(values), *style)
            for (name, values), style in zip(power.items(), styles, strict=True)
        },
        xlabel='frequency, cycles per HR pixel',
        ylabel='power, dB of 255²',
        marks={f'LR Nyquist, 1/{2 * scale}': nyquist},
    )
    text = (
        'Power of the HR pictures and of the errors by spatial frequency, averaged over '
        'directions, channels and pictures. Left of the dotted line, the LR picture holds the '
        'frequency and a network has to copy it; right of it, it has to guess. An error as strong '
        'as HR means that nothing was guessed right; an error far below HR left of the line is '
        f'what remains to be copied. {ours} has {_less(advantage(below))} error power than '
        f'{theirs} left of the line and {_less(advantage(~below))} right of it.'
    )
    data = {
        'frequency': frequency.tolist(),
        'lr_nyquist': nyquist,
        'power': {name: values.tolist() for name, values in power.items()},
        'advantage_below_nyquist_db': advantage(below),
        'advantage_above_nyquist_db': advantage(~below),
    }
    caption = f'Mean over {len(outputs)} picture{"s" if len(outputs) > 1 else ""}.'
    return Section('Error by spatial frequency', text, [Chart('spectrum', caption, chart)]), data


def _less(decibel: float) -> str:
    """Return a difference in words."""
    return f'{abs(decibel):.2f} dB {"less" if decibel >= 0 else "more"}'


def _file(name: str) -> str:
    """Return a name as part of a file name."""
    return ''.join(c if c.isalnum() or c in '-_' else '-' for c in name)
