"""The FMEN-S x4 of the package, trained from scratch in 1.6 hours on two CPU cores.

    fmen-jax train configs/shipped_x4.py --workdir runs/shipped_x4 \
        --data.train ../shared/data/train/photos ../shared/data/train/gb82 \
        --data.validation ../shared/data/validation/Kodak24

The network and the loss are those of the paper, but the recipe is not, because the paper's requires
a GPU. This one uses initial weights that compute bicubic interpolation, Muon with a learning rate
that decays to 0 along a cosine, patches drawn in proportion to the error of bicubic interpolation,
smaller batches, averaged weights, and bfloat16. A CPU with neither AVX512-BF16 nor AMX computes in
float32 instead. The recipe was chosen by validation on Kodak24.
"""

from fmen_jax.data.batches import PipelineConfig
from fmen_jax.models import zoo
from fmen_jax.training.experiment import Experiment, LoopConfig
from fmen_jax.training.optimizer import OptimConfig
from fmen_jax.training.step import StepConfig

experiment = Experiment(
    model=zoo.fmen('fmen_s', scale=4),
    start='bicubic',
    pipeline=PipelineConfig(patch=48, batch=16, sampling='error'),
    optim=OptimConfig('muon', learning_rate=3e-3, schedule='cosine', warmup_steps=100, b2=0.99),
    step=StepConfig(loss='l1', ema_decay=0.999, dtype='bfloat16'),
    loop=LoopConfig(steps=18_000, validate_every=2000, checkpoint_every=200),
)
