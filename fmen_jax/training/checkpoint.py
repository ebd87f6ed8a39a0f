"""Checkpoints of the training state: written aside by Orbax, in the background, and found again."""

from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from fmen_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of a run: the last `keep`, and the best by PSNR."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        """`folder` is made if it is not there."""
        training: Any = ocp.training
        keeping = training.preservation_policies
        best = keeping.BestN(
            get_metric_fn=_psnr, n=1, reverse=False, keep_checkpoints_without_metrics=False
        )
        self._orbax = training.Checkpointer(
            str(folder.resolve()),
            # every save that is asked for; the default leaves out those that come too fast
            save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=keeping.AnyPreservationPolicy([keeping.LatestN(keep), best]),
            cleanup_tmp_directories=True,
        )

    def save(self, state: TrainState, *, psnr: float | None) -> None:
        """Save in the background; `psnr` of the last validation at this step, if there was one."""
        metrics: Any = {} if psnr is None else {'psnr': psnr}
        if self.latest != int(state.step):
            self._orbax.save_async(int(state.step), state, metrics=metrics)

    @property
    def latest(self) -> int | None:
        """The step of the last checkpoint, or None."""
        self._orbax.wait()
        return self._orbax.latest.step if self._orbax.latest else None

    @property
    def best(self) -> int | None:
        """The step of the checkpoint with the highest PSNR; the last one if none has any."""
        self._orbax.wait()
        found = list(self._orbax.checkpoints)
        return max(found, key=lambda c: (_psnr(c.metrics), c.step)).step if found else None

    def psnr(self, step: int) -> float | None:
        """The PSNR that was saved with a step, if it was validated."""
        self._orbax.wait()
        return next((c.metrics or {} for c in self._orbax.checkpoints if c.step == step), {}).get(
            'psnr'
        )

    def load(self, like: TrainState, step: int) -> TrainState:
        """The state of a step, with the shapes, dtypes and shardings of `like`."""
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        return self._orbax.load(step, abstract)

    def close(self) -> None:
        """Wait for what is being written."""
        self._orbax.close()


def _psnr(metrics: Any) -> float:
    return (metrics or {}).get('psnr', float('-inf'))
