"""FMEN-S x4, as published as far as it is.

    fmen-jax train configs/fmen_s_x4.py --workdir runs/fmen_s_x4 \
        --data.train div2k/bicubic_x4 --data.validation Set5

Published (arXiv 2204.08397, its code and issues): the network, the expand ratio of 2, input in
0..255, and that the framework is EDSR's. As third parties report it: L1, Adam at 5e-4 with betas
0.9 and 0.999, batches of 64 patches of 64x64 LR pixels. Not published, so as EDSR's framework has
it: a million steps, halved every fifth, eight flips. Which pictures were used is not confirmed:
DIV2K, likely with Flickr2K.
"""

from fmen_jax.data.batches import PipelineConfig
from fmen_jax.models import zoo
from fmen_jax.training.experiment import Experiment, LoopConfig
from fmen_jax.training.optimizer import OptimConfig
from fmen_jax.training.step import StepConfig

experiment = Experiment(
    model=zoo.fmen('fmen_s', scale=4),
    pipeline=PipelineConfig(patch=64, batch=64),
    optim=OptimConfig(learning_rate=5e-4, schedule='halve', parts=5),
    step=StepConfig(loss='l1'),
    loop=LoopConfig(steps=1_000_000),
)
