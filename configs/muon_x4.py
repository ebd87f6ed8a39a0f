"""FMEN-S x4 from scratch with Muon, in an hour on two CPU cores.

    fmen-jax train configs/muon_x4.py --workdir runs/muon_x4 \
        --data.train ../shared/data/train/photos ../shared/data/train/gb82 \
        --data.validation ../shared/data/validation/Kodak24

As shipped_x4.py, but the updates of the kernels between head and tail are orthogonalized.
"""

from fmen_jax.data.batches import PipelineConfig
from fmen_jax.models import zoo
from fmen_jax.training.experiment import Experiment, LoopConfig
from fmen_jax.training.optimizer import OptimConfig
from fmen_jax.training.step import StepConfig

experiment = Experiment(
    model=zoo.fmen('fmen_s', scale=4),
    start='bicubic',
    pipeline=PipelineConfig(patch=48, batch=16),
    optim=OptimConfig('muon', learning_rate=3e-3, schedule='cosine', warmup_steps=100, b2=0.99),
    step=StepConfig(loss='l1', ema_decay=0.998),
    loop=LoopConfig(steps=9_000, validate_every=1000, checkpoint_every=200),
)
