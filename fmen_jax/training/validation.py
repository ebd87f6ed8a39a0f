"""Validation during training: PSNR in dB on benchmark folders, and a few images for the log."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from fmen_jax.data.pairs import Loaded, Pair, find_pairs
from fmen_jax.errors import InputError
from fmen_jax.evaluation import protocols, scoring
from fmen_jax.images.bicubic import imresize
from fmen_jax.network import Network
from fmen_jax.training.log import Log

MakeUpscaler = Callable[[Network], Callable[[np.ndarray], np.ndarray]]
"""Function that makes an upscaler of 8-bit images from a network; `inference` provides one."""

_SHOWN = 2
_SHOWN_SIZE = 512


class Validation:
    """Scores networks on benchmark folders with a named protocol."""

    def __init__(
        self, folders: Sequence[str], protocol: str, scale: int, upscaler: MakeUpscaler
    ) -> None:
        """Read all images once, to check that they can be scored.

        Raises:
          InputError: If the protocol does not exist, a folder contains no images, two folders have
            the same name, or an image cannot be scored.
        """
        self._protocol = protocols.protocol(protocol)
        self._folders: dict[str, list[Pair]] = {
            folder: find_pairs(Path(folder), scale) for folder in folders
        }
        if len({_name(folder) for folder in folders}) < len(self._folders):
            raise InputError(
                f'data.validation contains folders of the same name, {", ".join(folders)}. The log '
                'distinguishes folders by name: rename one of them.'
            )
        for pairs in self._folders.values():
            scoring.check(pairs, scale=scale, protocol=self._protocol)
        self._upscaler = upscaler

    def __bool__(self) -> bool:
        """Return whether there is anything to score."""
        return bool(self._folders)

    def __call__(
        self, network: Network, step: int, log: Log, stopping: Callable[[], bool]
    ) -> float | None:
        """Log the PSNR in dB of each folder and return their mean.

        `stopping` is called before each image. If it returns True, nothing is logged, and the
        result is None.
        """
        upscale = self._upscaler(network)
        scale = network.config.scale
        means: dict[str, float] = {}
        bicubic: dict[str, float] = {}
        for folder, pairs in self._folders.items():
            name = _name(folder)
            show = partial(self._show, {pair.name for pair in pairs[:_SHOWN]}, name, step, log)
            scores: list[scoring.ImageScore] = []
            for pair in pairs:
                if stopping():
                    return None
                scores += scoring.evaluate(
                    upscale, [pair], scale=scale, protocol=self._protocol, inspect=show
                )
            means[name] = float(np.mean([score.psnr for score in scores]))
            bicubic[name] = float(np.mean([score.bicubic_psnr for score in scores]))
        log.record(step, validation_psnr=means, bicubic_psnr=bicubic)
        return float(np.mean([*means.values()]))

    def logged(self, step: int, log: Log) -> float | None:
        """Return what an earlier call for this step and log returned; None if none finished."""
        means = log.find(step, 'validation_psnr')
        return None if means is None else float(np.mean([*means.values()]))

    def _show(
        self,
        shown: set[str],
        folder: str,
        step: int,
        log: Log,
        pair: Loaded,
        output: np.ndarray,
        _: object,
    ) -> None:
        """Log bicubic interpolation, output and HR side by side, for the images in `shown`."""
        if pair.name not in shown:
            return
        size = slice(_SHOWN_SIZE)
        bicubic = imresize(pair.lr, output.shape[0] // pair.lr.shape[0])
        strip = np.concatenate([side[size, size] for side in (bicubic, output, pair.hr)], 1)
        log.picture(step, f'{folder}/{pair.name}', strip)


def _name(folder: str) -> str:
    return Path(folder).resolve().name  # the name of '.' is empty
