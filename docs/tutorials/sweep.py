# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A sweep with error bars
#
# Two learning rates differ by a few hundredths of a decibel. Is that more than the difference
# between two seeds? This tutorial trains a small FMEN with two learning rates and three seeds each,
# on identical batches, and compares the rates seed by seed.

# %%
# %pip install -q fmen_jax scikit-image

# %%
import os
import tempfile
from pathlib import Path

import numpy as np
import scipy.stats
import skimage.data
from PIL import Image
from tqdm.auto import tqdm

from fmen_jax.data.batches import PipelineConfig
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.research.sweep import make_members, sweep
from fmen_jax.training.experiment import DataConfig, Experiment, LoopConfig
from fmen_jax.training.optimizer import OptimConfig

SHORT = 'FMEN_JAX_SHORT' in os.environ  # set by the tests
STEPS = 2 if SHORT else 200
SEEDS = (0, 1) if SHORT else (0, 1, 2)
RATES = (1e-3, 4e-3)

# %% [markdown]
# ## Data and settings
#
# All members share the experiment, except for the seed of the initial weights and what is varied.

# %%
folder = Path(tempfile.mkdtemp())
for kind, names in (('train', ('astronaut', 'coffee')), ('validation', ('chelsea',))):
    (folder / kind).mkdir()
    for name in names:
        pixels = getattr(skimage.data, name)()[: 64 if SHORT else 240, : 64 if SHORT else 240]
        Image.fromarray(pixels).save(folder / kind / f'{name}.png')

experiment = Experiment(
    model=FMENConfig(
        scale=2, n_feats=8 if SHORT else 28, mid_feats=8, down_blocks=1, up_blocks=(1, 1)
    ),
    start='bicubic',
    data=DataConfig(train=(str(folder / 'train'),), validation=(str(folder / 'validation'),)),
    pipeline=PipelineConfig(patch=8 if SHORT else 16, batch=2 if SHORT else 8),
    optim=OptimConfig(schedule='cosine'),
    loop=LoopConfig(steps=STEPS, log_every=STEPS, validate_every=STEPS, checkpoint_every=STEPS),
)
members = make_members(experiment, SEEDS, {'optim.learning_rate': RATES})
print([member.name for member in members])

# %% [markdown]
# ## Train
#
# One compiled step serves all members, because the learning rate is its argument. A member whose
# loss is not finite is stopped and counted; the others go on. The same call resumes an interrupted
# sweep.

# %%
with tqdm(total=len(members), unit='member') as bar:

    def report(name, record):
        """Move the bar when a member has been validated."""
        if 'validation_psnr' in record:
            bar.update()
            bar.set_postfix_str(name)

    results = sweep(members, folder / 'sweep', upscaler=Upscaler, report=report)

for result in results:
    print(f'{result.name:<28} {result.psnr:.3f} dB')

# %% [markdown]
# ## Compare
#
# Members with the same seed start from the same weights and see the same batches, so their
# differences are paired. The interval is that of Student's t over the seeds. If it contains 0, this
# sweep does not show that one rate is better.

# %%
low, high = (
    np.array([r.psnr for r in results if r.numbers['learning_rate'] == rate]) for rate in RATES
)
difference = high - low
half = scipy.stats.t.ppf(0.975, len(SEEDS) - 1) * difference.std(ddof=1) / len(SEEDS) ** 0.5
print(f'{RATES[1]} against {RATES[0]}: {difference.mean():+.3f} dB, +/- {half:.3f}')

# %% [markdown]
# ## Next
#
# On the command line this is `fmen-jax sweep CONFIG --seeds 0 1 2 --vary
# optim.learning_rate=1e-3,4e-3 --workdir DIR`. [Research](../research) describes sweeps, and
# ablations for what changes the network.
