# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Upscale a picture and inspect the network
#
# This tutorial enlarges a photograph four times, compares the result with bicubic interpolation,
# and looks inside: at the parameters, at the pixels that one output pixel depends on, and at
# tiles. The weights and the picture are part of the package, so that nothing is downloaded.

# %%
# %pip install -q fmen_jax

# %%
from importlib import resources

import jax
import numpy as np
from PIL import Image

import fmen_jax
from fmen_jax.images.bicubic import imresize

# %% [markdown]
# ## Upscale
#
# `load` takes the name of weights in the package, the path of a checkpoint or the name of published
# weights. `upscale` takes the path of a picture or an array, and returns an array of the same
# dtype.

# %%
net = fmen_jax.load('fmen_s_x4')
picture = resources.files('fmen_jax.web') / 'static/sample.png'
with resources.as_file(picture) as path:
    lr = np.asarray(Image.open(path))
lr = lr[:100, :120]
sr = fmen_jax.upscale(net, lr)
print(lr.shape, '->', sr.shape)

# %% [markdown]
# Bicubic interpolation is on the left, the network on the right.

# %%
bicubic = imresize(lr, 4)
Image.fromarray(np.concatenate([bicubic, sr], axis=1))

# %% [markdown]
# ## Look inside
#
# A `Network` is a value: a configuration, the name of a graph, and variables in nested dicts of
# NumPy arrays. The deploy graph of FMEN-S consists of 34 convolutions of 3x3.

# %%
print(net.config)
print(net.graph)
kernels = [leaf for leaf in jax.tree.leaves(net.variables) if leaf.ndim == 4]
parameters = sum(leaf.size for leaf in jax.tree.leaves(net.variables))
print(len(kernels), 'convolutions,', f'{parameters:,}', 'parameters')

# %% [markdown]
# `net(x)` takes floats [N, H, W, 3] in 0..255. `net.module.apply` is a pure function of the
# variables and the images, and JAX differentiates it. The gradient of one output pixel with respect
# to the input shows which LR pixels it depends on: those within the receptive radius.

# %%
x = lr[None].astype(np.float32)


def center_pixel(x):
    """Return the red value of an output pixel in the center."""
    y = net.module.apply(net.variables, x)
    return y[0, y.shape[1] // 2, y.shape[2] // 2, 0]


gradient = np.abs(jax.grad(center_pixel)(x))[0].sum(-1)
rows, columns = np.nonzero(gradient)
reach = max(np.ptp(rows), np.ptp(columns)) / 2
print(f'reaches {reach:.0f} LR pixels; the radius is {net.config.receptive_radius}')
assert reach <= net.config.receptive_radius

# %% [markdown]
# The gradient in the neighborhood, on a logarithmic scale: it decreases quickly with the distance.

# %%
visible = np.log10(gradient / gradient.max() + 1e-6)
shades = np.uint8(255 * (visible + 6) / 6)
Image.fromarray(shades).resize((480, 400), Image.Resampling.NEAREST)

# %% [markdown]
# ## Tiles
#
# A picture that does not fit into memory is processed in tiles with a halo of the receptive radius.
# The result is the same as that of the whole picture.

# %%
tiled = fmen_jax.upscale(net, lr, tile=80)
difference = np.abs(tiled.astype(int) - sr).max()
print('largest difference between tiles and the whole picture:', difference)
assert difference <= 1  # equal with oneDNN; elsewhere float32 sums may round differently

# %% [markdown]
# ## Next
#
# - [Load an official checkpoint and prove it](load_and_prove)
# - [Train in ten minutes](train_in_ten_minutes)
# - [Upscaling](../upscaling): the command for files and folders, with all its options
