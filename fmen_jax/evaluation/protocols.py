"""Named evaluation protocols of published results: color space, border crop and rounding."""

import dataclasses
from typing import Any, Literal, NamedTuple

from fmen_jax.errors import InputError
from fmen_jax.evaluation import metrics


class Score(NamedTuple):
    """PSNR in dB and SSIM."""

    psnr: Any
    ssim: Any


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Evaluation protocol. Images are [H, W, 3], float, RGB in 0..255."""

    name: str
    color: Literal['y', 'rgb']
    """Color space. 'y': BT.601 studio luma, not rounded; 'rgb': all channels, SSIM averaged."""
    crop_scales: int = 0
    """Width of the border crop in multiples of the scale, added to `crop_pixels`."""
    crop_pixels: int = 0
    """Width of the border crop in HR pixels, added to `crop_scales` times the scale."""
    rounded: bool = True
    """Whether the output is rounded and clamped to 8 bits before the comparison."""

    def crop(self, scale: int) -> int:
        """Return the number of HR pixels cropped at each border."""
        return self.crop_scales * scale + self.crop_pixels

    def score(self, output: Any, target: Any, *, scale: int) -> Score:
        """Return PSNR and SSIM of two images, [H, W, 3] floats of NumPy or JAX (also under jit).

        Raises:
          InputError: The images have different shapes, or are too small for the crop.
        """
        if self.rounded:
            xp = output.__array_namespace__()
            output = xp.clip(xp.round(output), 0, 255)
        if self.color == 'y':
            output, target = metrics.luma(output), metrics.luma(target)
        crop = self.crop(scale)
        if min(output.shape[:2]) <= 2 * crop:
            raise InputError(
                f'an image of {output.shape[1]}x{output.shape[0]} has nothing left when {crop} '
                f'pixels are cropped at each border, as protocol {self.name!r} says.'
            )
        inside = slice(crop, -crop if crop else None)
        output, target = output[inside, inside], target[inside, inside]
        return Score(metrics.psnr(output, target), metrics.ssim(output, target))

    def __str__(self) -> str:
        """Return the name and all settings on one line."""
        crops = []
        if self.crop_scales:
            crops.append(f'{self.crop_scales} x scale')
        if self.crop_pixels:
            crops.append(str(self.crop_pixels))
        return (
            f'{self.name} ({"BT.601 luma" if self.color == "y" else "RGB"}, '
            f'{" + ".join(crops) or "0"} pixels cropped, '
            f'{"rounded to 8 bits" if self.rounded else "not rounded"})'
        )


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol('y', 'y', crop_scales=1),  # most papers
        Protocol('edsr-div2k', 'rgb', crop_scales=1, crop_pixels=6),  # EDSR on DIV2K
        Protocol('ntire-esr', 'rgb', crop_pixels=4),  # NTIRE's efficient SR challenges
    )
}


def protocol(name: str) -> Protocol:
    """Return the protocol with the given name.

    Raises:
      InputError: No protocol has this name.
    """
    if name not in PROTOCOLS:
        raise InputError(f'no protocol is named {name!r}; there are {", ".join(PROTOCOLS)}.')
    return PROTOCOLS[name]
