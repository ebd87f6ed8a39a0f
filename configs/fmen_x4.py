"""FMEN x4, in the reconstructed configuration that matches its published size.

    fmen-jax train configs/fmen_x4.py --workdir runs/fmen_x4 \
        --data.train div2k/bicubic_x4 --data.validation Set5

Published (arXiv 2204.08397, its code and issues): the size of the network, which several
configurations could have, the expand ratio of 2, inputs in 0..255, and the use of EDSR's framework.
Reported by third parties: the L1 loss, Adam with a learning rate of 5e-4 and betas of 0.9 and
0.999, and batches of 64 patches of 64x64 LR pixels.
Not published, and therefore taken from EDSR's framework: a million steps, a learning rate that is
halved after each fifth of them, and the eight flips and rotations.
Not confirmed: the training images (DIV2K, probably with Flickr2K).
"""

from fmen_jax.data.batches import PipelineConfig
from fmen_jax.models import zoo
from fmen_jax.training.experiment import Experiment, LoopConfig
from fmen_jax.training.optimizer import OptimConfig
from fmen_jax.training.step import StepConfig

experiment = Experiment(
    model=zoo.fmen('fmen', scale=4),
    pipeline=PipelineConfig(patch=64, batch=64),
    optim=OptimConfig(learning_rate=5e-4, schedule='halve', parts=5),
    step=StepConfig(loss='l1'),
    loop=LoopConfig(steps=1_000_000),
)
