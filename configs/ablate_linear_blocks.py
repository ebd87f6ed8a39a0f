"""Ablation: linear blocks, all of which deploy as the same 3x3 convolutions.

Command:

    fmen-jax ablate configs/ablate_linear_blocks.py --workdir runs/ablate_linear_blocks \
        --data.train FOLDER --data.validation BENCHMARK

The settings are those of configs/quickstart.py. Options override them for all variants, such as
--loop.steps and --model.n-feats. docs/research.md has results and what they do not show.
"""

from fmen_jax.data.batches import PipelineConfig
from fmen_jax.models.variant import VariantConfig
from fmen_jax.research.ablation import with_model
from fmen_jax.training.experiment import Experiment, LoopConfig
from fmen_jax.training.optimizer import OptimConfig
from fmen_jax.training.step import StepConfig

experiment = Experiment(
    model=VariantConfig(scale=4),
    start='bicubic',
    pipeline=PipelineConfig(patch=32, batch=16),
    optim=OptimConfig(learning_rate=2e-3, schedule='cosine', warmup_steps=20, b2=0.99),
    step=StepConfig(ema_decay=0.98),
    loop=LoopConfig(steps=1000, log_every=50, validate_every=1000, checkpoint_every=250),
)


def variants(experiment: Experiment) -> dict[str, Experiment]:
    """Return the variants by name, the baseline first."""
    blocks = ('conv', 'rrrb', 'conv3xc', 'ecb', 'repvgg', 'acb', 'dbb', 'repsr')
    return {block: with_model(experiment, block=block) for block in blocks}
