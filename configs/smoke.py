"""A network and a run that are small enough for a test: they take seconds on one core.

Command:

    fmen-jax train configs/smoke.py --workdir /tmp/smoke --data.train FOLDER
"""

from fmen_jax.data.batches import PipelineConfig
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.training.experiment import Experiment, LoopConfig
from fmen_jax.training.optimizer import OptimConfig

experiment = Experiment(
    model=FMENConfig(scale=2, n_feats=8, mid_feats=6, down_blocks=1, up_blocks=(1, 1)),
    pipeline=PipelineConfig(patch=8, batch=8),
    optim=OptimConfig(learning_rate=1e-3),
    loop=LoopConfig(steps=30, log_every=5, validate_every=15, checkpoint_every=5),
)
