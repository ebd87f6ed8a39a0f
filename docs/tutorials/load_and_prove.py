# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Load an official checkpoint and prove it
#
# This tutorial loads the checkpoint that the authors of FMEN published, runs it in JAX and in
# PyTorch, and compares the outputs: in float64 with a tight bound, in float32 with a bound for
# rounding, and with a deliberately corrupted weight, which must be noticed.
#
# PyTorch is needed for the comparison only.

# %%
# %pip install -q fmen_jax torch

# %%
import os

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

import fmen_jax
from fmen_jax import porting

SHORT = 'FMEN_JAX_SHORT' in os.environ  # set by the tests, which have no network
NAME = 'fmen_s_x4' if SHORT else 'fmen_s_x4_github'

# %% [markdown]
# ## Load
#
# `load` downloads the file on first use and verifies its SHA-256. Keys and shapes determine the
# network, its configuration and the scale.

# %%
net = fmen_jax.load(NAME)
print(net.config)

# %% [markdown]
# ## The same network in PyTorch
#
# In your own work, import the original code here. This is the deploy graph of FMEN as section 3 of
# the paper describes it, with the names of the published checkpoint.


# %%
def conv(inputs, outputs):
    """Return a 3x3 convolution that preserves the size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Folded(nn.Module):
    """A re-parameterized block: one convolution."""

    def __init__(self, n):
        super().__init__()
        self.rep_conv = conv(n, n)

    def forward(self, x):
        return self.rep_conv(x)


class ERB(nn.Module):
    """Enhanced residual block: two folded blocks and an activation between them."""

    def __init__(self, n):
        super().__init__()
        self.conv1, self.conv2 = Folded(n), Folded(n)

    def forward(self, x):
        return self.conv2(functional.leaky_relu(self.conv1(x), 0.1))


class HFAB(nn.Module):
    """High-frequency attention block."""

    def __init__(self, n, mid, blocks):
        super().__init__()
        self.squeeze, self.excitate = conv(n, mid), conv(mid, n)
        self.convs = nn.Sequential(*(ERB(mid) for _ in range(blocks)))

    def forward(self, x):
        y = functional.leaky_relu(self.squeeze(x), 0.1)
        y = functional.leaky_relu(self.convs(y), 0.1)
        return torch.sigmoid(self.excitate(y)) * x


class FMEN(nn.Module):
    """The deploy graph of FMEN."""

    def __init__(self, c):
        super().__init__()
        n = c.n_feats
        self.head = conv(3, n)
        self.warmup = nn.Sequential(conv(n, n), HFAB(n, c.mid_feats - 4, c.up_blocks[0]))
        self.ERBs = nn.ModuleList(ERB(n) for _ in range(c.down_blocks))
        self.HFABs = nn.ModuleList(HFAB(n, c.mid_feats, blocks) for blocks in c.up_blocks[1:])
        self.lr_conv = conv(n, n)
        self.tail = nn.Sequential(conv(n, 3 * c.scale**2), nn.PixelShuffle(c.scale))

    def forward(self, x):
        x = self.head(x)
        h = self.warmup(x)
        for erb, hfab in zip(self.ERBs, self.HFABs, strict=True):
            h = hfab(erb(h))
        return self.tail(self.lr_conv(h) + x)


# %% [markdown]
# `load_state_dict` is strict: a key that is missing, superfluous or of another shape is an error.

# %%
original = FMEN(net.config)
state = {key: torch.tensor(value) for key, value in net.state_dict('github').items()}
print(original.load_state_dict(state))

# %% [markdown]
# ## Compare in float64
#
# In float64, rounding is far below anything that a mistake would cause. The bound is 1e-8 of the
# range 0..255.

# %%
rng = np.random.default_rng(0)
x = rng.uniform(0, 255, (1, 24, 20, 3) if SHORT else (1, 64, 48, 3))


def in_torch(module, x):
    """Run a PyTorch network on images [N, H, W, 3]."""
    with torch.no_grad():
        y = module(torch.from_numpy(x).permute(0, 3, 1, 2))
    return y.permute(0, 2, 3, 1).numpy()


with jax.enable_x64(True):
    ours = np.asarray(net(x))
expected = in_torch(original.double(), x)
error = np.abs(ours - expected).max() / 255
print(f'float64: {error:.1e} of the range')
assert error < 1e-8

# %% [markdown]
# ## Compare in float32
#
# Both frameworks round, in different orders. The bound is 2e-5 of the range, which is far from one
# level of an 8-bit picture.

# %%
single = x.astype(np.float32)
error = np.abs(np.asarray(net(single)) - in_torch(original.float(), single)).max() / 255
print(f'float32: {error:.1e} of the range')
assert error < 2e-5

# %% [markdown]
# ## Show that the comparison can fail
#
# A comparison that accepts everything proves nothing. Change one weight by one percent, and the
# float64 bound must be exceeded.

# %%
corrupted = {key: value.copy() for key, value in net.state_dict('github').items()}
corrupted['lr_conv.weight'].flat[0] *= 1.01
variables = porting.to_variables(corrupted).variables
with jax.enable_x64(True):
    wrong = np.asarray(net.module.apply(variables, x))
error = np.abs(wrong - expected).max() / 255
print(f'one corrupted weight: {error:.1e} of the range')
assert error > 1e-8

# %% [markdown]
# ## Save it for PyTorch again
#
# A checkpoint that fmen_jax saves has the keys of the published code, in their order.

# %%
net.save('fmen_s_x4.safetensors')
again = fmen_jax.load('fmen_s_x4.safetensors')
assert list(again.state_dict()) == list(net.state_dict())
