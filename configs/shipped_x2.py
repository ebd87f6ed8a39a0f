"""The FMEN-S x2 of the package, trained from earlier x4 weights in under an hour on two CPU cores.

Command:

    fmen-jax train configs/shipped_x2.py --workdir runs/shipped_x2 \
        --init-from runs/shipped_x4/train_weights.safetensors \
        --data.train ../shared/data/train/photos ../shared/data/train/gb82 \
        --data.validation ../shared/data/validation/Kodak24

The x4 weights were those of an earlier recipe: Adam with a learning rate of 1.5e-3, 200 warm-up
steps, 12,000 steps, uniform sampling and float32.
"""

from fmen_jax.data.batches import PipelineConfig
from fmen_jax.models import zoo
from fmen_jax.training.experiment import Experiment, LoopConfig
from fmen_jax.training.optimizer import OptimConfig
from fmen_jax.training.step import StepConfig

experiment = Experiment(
    model=zoo.fmen('fmen_s', scale=2),
    pipeline=PipelineConfig(patch=48, batch=16),
    optim=OptimConfig(learning_rate=5e-4, schedule='cosine', warmup_steps=100, b2=0.99),
    step=StepConfig(loss='l1', ema_decay=0.999),
    loop=LoopConfig(steps=1_500, validate_every=500, checkpoint_every=200),
)
