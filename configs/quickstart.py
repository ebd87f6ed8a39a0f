"""FMEN-S x4 in minutes on two CPU cores, to a PSNR above that of bicubic interpolation.

    fmen-jax train configs/quickstart.py --workdir runs/quickstart \
        --data.train FOLDER --data.validation BENCHMARK

The network is that of the paper, but the recipe is not. FOLDER contains photographs (25 of 576x576
pixels are enough), and BENCHMARK is, for example, Set5.
"""

from fmen_jax.data.batches import PipelineConfig
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.training.experiment import Experiment, LoopConfig
from fmen_jax.training.optimizer import OptimConfig
from fmen_jax.training.step import StepConfig

experiment = Experiment(
    model=FMENConfig(scale=4),
    start='bicubic',
    pipeline=PipelineConfig(patch=32, batch=16),
    optim=OptimConfig(learning_rate=2e-3, schedule='cosine', warmup_steps=20, b2=0.99),
    step=StepConfig(ema_decay=0.98),
    loop=LoopConfig(steps=1000, log_every=50, validate_every=500, checkpoint_every=250),
)
