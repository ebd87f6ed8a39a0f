# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A linear block of your own
#
# FMEN trains a wide block (the RRRB) and deploys one 3x3 convolution. This tutorial adds another
# block to the network without touching the package: it defines the block, checks it, trains it,
# folds it, and compares it with FMEN's own over several seeds.

# %%
# %pip install -q fmen_jax scikit-image

# %%
import os
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import skimage.data
from PIL import Image
from tqdm.auto import tqdm

import fmen_jax
from fmen_jax.data.batches import PipelineConfig
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.models.cost import count_cost
from fmen_jax.models.layers import Conv
from fmen_jax.models.linear_blocks import LinearBlock, check, in_parallel, in_series, register_block
from fmen_jax.models.variant import VariantConfig
from fmen_jax.research.ablation import ablate, as_markdown, with_model
from fmen_jax.training.experiment import DataConfig, Experiment, LoopConfig
from fmen_jax.training.loop import train
from fmen_jax.training.optimizer import OptimConfig

SHORT = 'FMEN_JAX_SHORT' in os.environ  # set by the tests
STEPS = 3 if SHORT else 300
SEEDS = (0, 1) if SHORT else (0, 1, 2)

# %% [markdown]
# ## The block
#
# A block is a Flax module with a train graph, `layers` and `expanded`, and one pure function,
# `collapse`, which returns the equivalent 3x3 convolution. This one is a gain for each channel plus
# two convolutions: 3x3 into a wide map and 1x1 back. The 3x3 convolution comes first, so that zero
# padding needs no care.


# %%
@register_block('gain')
class GainBlock(LinearBlock):
    """x * gain + 1x1(3x3(x)), with a gain for each channel that starts at 1."""

    def layers(self):
        c, wide = self.features, self.features * self.expand_ratio
        self.gain = self.param('gain', lambda _, shape: jnp.ones(shape), (c,))
        self.widen = Conv(c, wide)
        self.narrow = Conv(wide, c, size=1)

    def expanded(self, x, *, train):
        return x * self.gain.astype(x.dtype).reshape(1, 1, 1, -1) + self.narrow(self.widen(x))

    @staticmethod
    def collapse(params, statistics):
        gain = params['gain']
        diagonal = {'kernel': jnp.diag(gain)[None, None], 'bias': jnp.zeros_like(gain)}
        return in_parallel(diagonal, in_series(params['widen'], params['narrow']))

    @staticmethod
    def initial(drawn, generator):
        return drawn | {'gain': np.ones_like(drawn['gain'])}


# %% [markdown]
# `check` computes the expanded, the collapsed and the deploy graph in float64 at sizes from 1x1 to
# 17x23, compares outputs and gradients, and says what is wrong if they differ.

# %%
print(f'largest difference: {check(GainBlock):.1e}')

# %% [markdown]
# ## Training
#
# A `VariantConfig` is FMEN with other blocks. The network is tiny, and so are the pictures, which
# come with scikit-image. Such a short training says nothing about larger networks.

# %%
folder = Path(tempfile.mkdtemp())
for kind, names in (('train', ('astronaut', 'coffee')), ('validation', ('chelsea',))):
    (folder / kind).mkdir()
    for name in names:
        pixels = getattr(skimage.data, name)()[100:196, 100:196]
        Image.fromarray(pixels).save(folder / kind / f'{name}.png')

experiment = Experiment(
    model=VariantConfig(
        scale=2, block='gain', n_feats=8, mid_feats=6, down_blocks=1, up_blocks=(1, 1)
    ),
    data=DataConfig(train=(str(folder / 'train'),), validation=(str(folder / 'validation'),)),
    pipeline=PipelineConfig(patch=12, batch=8),
    optim=OptimConfig(learning_rate=2e-3, schedule='cosine'),
    loop=LoopConfig(steps=STEPS, log_every=1, validate_every=STEPS, checkpoint_every=STEPS),
)
with tqdm(total=STEPS, unit='step') as bar:

    def report_step(record):
        """Move the bar at each record of the log."""
        bar.update(record['step'] - bar.n)

    weights = train(experiment, folder / 'run', upscaler=Upscaler, report=report_step)

# %% [markdown]
# The run ends with folded weights, in which nothing is left of the block: they load on machines
# that do not know it, and run, tile, export and cost what FMEN does. The weights before folding
# name the block. They load only after the module that defines it has been imported.

# %%
deployed = fmen_jax.load(weights)
trained = fmen_jax.load(folder / 'run/train_weights.safetensors')
lr = np.asarray(Image.open(folder / 'validation/chelsea.png'))[:31, :23]
image = lr[None].astype(np.float32)
difference = float(abs(trained(image) - deployed(image)).max())
print(f'folding changed the output by up to {difference:.1e} of 255')
assert difference < 1e-2
print(fmen_jax.upscale(deployed, lr).shape, count_cost(deployed.config.build(), 180, 320))

# %% [markdown]
# ## Does it help?
#
# One run cannot tell. An ablation trains every variant with the same seeds on the same batches, and
# gives the mean difference to the first variant with a 95 % confidence interval.

# %%
variants = {name: with_model(experiment, block=name) for name in ('rrrb', 'gain')}
with tqdm(total=len(variants) * len(SEEDS), unit='run') as bar:

    def report_member(name, record):
        """Move the bar when a run has been validated."""
        if 'validation_psnr' in record:
            bar.update()
            bar.set_postfix_str(name)

    rows = ablate(
        variants,
        SEEDS,
        folder / 'ablation',
        upscaler=Upscaler,
        size=(24, 32),
        rounds=3,
        report=report_member,
    )
print(as_markdown(rows))

# %% [markdown]
# ## Next
#
# On the command line this is `fmen-jax ablate CONFIG --seeds 0 1 2 --workdir DIR`, where CONFIG is
# a Python file that defines the block, an experiment and its variants. [Research](../research)
# lists the blocks and attentions of the package, and ready-made ablations.
