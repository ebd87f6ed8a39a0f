"""Validation while training: PSNR on benchmark folders, and a few of the pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fmen_jax.data.pairs import Loaded, Pair, find_pairs
from fmen_jax.evaluation import benchmark, protocols
from fmen_jax.pretrained import Network
from fmen_jax.training.log import Log

MakeUpscaler = Callable[[Network], Callable[[np.ndarray], np.ndarray]]
"""Makes of a network a function on 8-bit pictures; inference has one, which stands to the right."""

_SHOWN = 2
_SHOWN_SIZE = 512


class Validation:
    """Scores networks on benchmark folders by a named protocol."""

    def __init__(
        self, folders: Sequence[str], protocol: str, scale: int, upscaler: MakeUpscaler
    ) -> None:
        """Looks for the pictures.

        Raises:
          InputError: no such protocol, or folders without pictures.
        """
        self._protocol = protocols.protocol(protocol)
        self._folders: dict[str, list[Pair]] = {
            folder: find_pairs(Path(folder), scale) for folder in folders
        }
        self._upscaler = upscaler

    def __bool__(self) -> bool:
        return bool(self._folders)

    def __call__(self, network: Network, step: int, log: Log) -> float | None:
        """The mean PSNR in dB over the folders, each of which is logged; None without folders."""
        if not self:
            return None
        upscale = self._upscaler(network)
        means: dict[str, float] = {}
        for folder, pairs in self._folders.items():
            name = Path(folder).name
            shown = {pair.name for pair in pairs[:_SHOWN]}

            def show(
                loaded: Loaded,
                output: np.ndarray,
                score: object,
                name: str = name,
                shown: set[str] = shown,
            ) -> None:
                del score
                if loaded.name in shown:
                    size = slice(_SHOWN_SIZE)
                    sides = [side[size, size] for side in (output, loaded.hr)]
                    log.picture(step, f'{name}/{loaded.name}', np.concatenate(sides, 1))

            scores = benchmark.evaluate(
                upscale, pairs, scale=network.config.scale, protocol=self._protocol, inspect=show
            )
            means[name] = float(np.mean([score.psnr for score in scores]))
        log.record(step, validation_psnr=means)
        return float(np.mean([*means.values()]))
