"""Checkpoints of the training state, which Orbax writes atomically and in the background."""

from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from fmen_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of a run: the last `keep` checkpoints, and the one with the highest PSNR."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        """Open the checkpoints in `folder`, which is created if it does not exist."""
        training: Any = ocp.training
        keeping = training.preservation_policies
        best = keeping.BestN(
            get_metric_fn=_psnr, n=1, reverse=False, keep_checkpoints_without_metrics=False
        )
        self._orbax = training.Checkpointer(
            str(folder.resolve()),
            # Save whenever asked; the default policy skips saves that follow too soon.
            save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=keeping.AnyPreservationPolicy([keeping.LatestN(keep), best]),
            cleanup_tmp_directories=True,
        )

    def save(self, state: TrainState, *, psnr: float | None) -> None:
        """Save in the background, with the PSNR in dB of the validation at this step, if any."""
        metrics: Any = {} if psnr is None else {'psnr': psnr}
        if self.latest != int(state.step):
            self._orbax.save_async(int(state.step), state, metrics=metrics)

    @property
    def latest(self) -> int | None:
        """Step of the last checkpoint, or None if there is none."""
        self._orbax.wait()
        return self._orbax.latest.step if self._orbax.latest else None

    @property
    def best(self) -> int | None:
        """Step of the checkpoint with the highest PSNR; of the last one if none has a PSNR."""
        self._orbax.wait()
        found = list(self._orbax.checkpoints)
        return max(found, key=lambda c: (_psnr(c.metrics), c.step)).step if found else None

    def psnr(self, step: int) -> float | None:
        """Return the PSNR in dB that was saved with a step, or None if it was not validated."""
        self._orbax.wait()
        return next((c.metrics or {} for c in self._orbax.checkpoints if c.step == step), {}).get(
            'psnr'
        )

    def load(self, like: TrainState, step: int) -> TrainState:
        """Return the state of a step, with the shapes, dtypes and shardings of `like`."""
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        return self._orbax.load(step, abstract)

    def close(self) -> None:
        """Wait until all checkpoints are written."""
        self._orbax.close()


def _psnr(metrics: Any) -> float:
    return (metrics or {}).get('psnr', float('-inf'))
