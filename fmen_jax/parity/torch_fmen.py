"""FMEN, E-RFDN and RLFN in plain PyTorch, as a PyTorch user would write them from the papers.

This is the reference `builtin` of `fmen-jax parity`, and a contender of the benchmarks. Images are
NCHW, float, RGB in 0..255. Parameter names are those of the published checkpoints. The file imports
PyTorch alone, so that it also runs where JAX is not installed.
"""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.1
RIVAL_SLOPE = 0.05


def conv3(inputs: int, outputs: int, *, padding: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution."""
    return nn.Conv2d(inputs, outputs, 3, padding=padding)


def bordered(x: Tensor, border: Tensor) -> Tensor:
    """Pad [N, C, H, W] by one pixel on each side with the value [C]."""
    x = F.pad(x, (1, 1, 1, 1))
    value = border.view(1, -1, 1, 1)
    x[:, :, :1], x[:, :, -1:], x[..., :1], x[..., -1:] = value, value, value, value
    return x


def of_zero(bn: nn.BatchNorm2d) -> Tensor:
    """Return the output [C] of a batch norm for zero input, under its running statistics."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    return bn.bias - bn.running_mean * bn.weight / torch.sqrt(bn.running_var + bn.eps)


class RRRB(nn.Module):
    """Train form of an RRRB: 1x1, 3x3 and 1x1 convolutions with two skip connections."""

    def __init__(self, features: int, ratio: int) -> None:
        super().__init__()
        wide = features * ratio
        self.expand_conv = nn.Conv2d(features, wide, 1)
        self.fea_conv = conv3(wide, wide, padding=0)
        self.reduce_conv = nn.Conv2d(wide, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.expand_conv(x)
        assert self.expand_conv.bias is not None
        wide = self.fea_conv(bordered(wide, self.expand_conv.bias)) + wide
        return self.reduce_conv(wide) + x


class Folded(nn.Module):
    """Deploy form of an RRRB: one 3x3 convolution."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.rep_conv = conv3(features, features)

    def forward(self, x: Tensor) -> Tensor:
        return self.rep_conv(x)


class ERB(nn.Module):
    """Two RRRBs, in train or deploy form, with a LeakyReLU between them."""

    def __init__(self, features: int, ratio: int, *, deploy: bool) -> None:
        super().__init__()
        self.conv1 = Folded(features) if deploy else RRRB(features, ratio)
        self.conv2 = Folded(features) if deploy else RRRB(features, ratio)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.leaky_relu(self.conv1(x), SLOPE))


class HFAB(nn.Module):
    """High-frequency attention block."""

    def __init__(self, n: int, m: int, erbs: int, ratio: int, *, deploy: bool) -> None:
        super().__init__()
        self.deploy = deploy
        self.squeeze = conv3(n, m, padding=int(deploy))
        self.convs = nn.Sequential(*(ERB(m, ratio, deploy=deploy) for _ in range(erbs)))
        self.excitate = conv3(m, n, padding=int(deploy))
        if not deploy:
            self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(c) for c in (n, m, n))

    def forward(self, x: Tensor) -> Tensor:
        if self.deploy:
            y = F.leaky_relu(self.squeeze(x), SLOPE)
            y = self.excitate(F.leaky_relu(self.convs(y), SLOPE))
        else:
            y = self.bn1(x)
            y = F.leaky_relu(self.squeeze(bordered(y, of_zero(self.bn1))), SLOPE)
            y = self.bn2(F.leaky_relu(self.convs(y), SLOPE))
            y = self.bn3(self.excitate(bordered(y, of_zero(self.bn2))))
        return torch.sigmoid(y) * x


class TorchFMEN(nn.Module):
    """FMEN: the published train graph, or the folded graph if `deploy` is true.

    `config` has the fields of `fmen_jax.models.fmen.FMENConfig`.
    """

    def __init__(self, config: Any, *, deploy: bool) -> None:
        super().__init__()
        c, n = config, config.n_feats
        mids = [c.mid_feats - 4] + [c.mid_feats] * c.down_blocks
        attention = [
            HFAB(n, mid, erbs, c.attention_expand_ratio, deploy=deploy)
            for mid, erbs in zip(mids, c.up_blocks, strict=True)
        ]
        self.head = conv3(c.n_colors, n)
        self.warmup = nn.Sequential(conv3(n, n), attention[0])
        self.ERBs = nn.ModuleList(
            ERB(n, c.backbone_expand_ratio, deploy=deploy) for _ in range(c.down_blocks)
        )
        self.HFABs = nn.ModuleList(attention[1:])
        self.lr_conv = conv3(n, n)
        self.tail = nn.Sequential(conv3(n, c.n_colors * c.scale**2), nn.PixelShuffle(c.scale))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        h = self.warmup(x)
        for erb, hfab in zip(self.ERBs, self.HFABs, strict=True):
            h = hfab(erb(h))
        return self.tail(self.lr_conv(h) + x)


class ESA(nn.Module):
    """Enhanced spatial attention; the short form of RLFN has one 3x3 convolution, E-RFDN three."""

    def __init__(self, n: int, f: int, *, short: bool) -> None:
        super().__init__()
        self.short = short
        self.conv1 = nn.Conv2d(n, f, 1)
        self.conv_f = nn.Conv2d(f, f, 1)
        self.conv2 = nn.Conv2d(f, f, 3, stride=2)
        self.conv3 = conv3(f, f)
        self.conv4 = nn.Conv2d(f, n, 1)
        if not short:
            self.conv_max, self.conv3_ = conv3(f, f), conv3(f, f)

    def forward(self, x: Tensor) -> Tensor:
        c1 = self.conv1(x)
        y = F.max_pool2d(self.conv2(c1), 7, stride=3)
        if self.short:
            y = self.conv3(y)
        else:
            y = self.conv3_(F.relu(self.conv3(F.relu(self.conv_max(y)))))
        y = F.interpolate(y, x.shape[2:], mode='bilinear', align_corners=False)
        return torch.sigmoid(self.conv4(y + self.conv_f(c1))) * x


class RFDB(nn.Module):
    """Residual feature distillation block of E-RFDN."""

    def __init__(self, n: int) -> None:
        super().__init__()
        half = n // 2
        self.c1_d, self.c2_d, self.c3_d = (nn.Conv2d(n, half, 1) for _ in range(3))
        self.c1_r, self.c2_r, self.c3_r = (conv3(n, n) for _ in range(3))
        self.c4 = conv3(n, half)
        self.c5 = nn.Conv2d(4 * half, n, 1)
        self.esa = ESA(n, n // 4, short=False)

    def forward(self, x: Tensor) -> Tensor:
        distilled = []
        steps = (self.c1_d, self.c1_r), (self.c2_d, self.c2_r), (self.c3_d, self.c3_r)
        for distill, refine in steps:
            distilled.append(F.leaky_relu(distill(x), RIVAL_SLOPE))
            x = F.leaky_relu(refine(x) + x, RIVAL_SLOPE)
        distilled.append(F.leaky_relu(self.c4(x), RIVAL_SLOPE))
        return self.esa(self.c5(torch.cat(distilled, 1)))


class RLFB(nn.Module):
    """Residual local feature block of RLFN."""

    def __init__(self, n: int, m: int, f: int) -> None:
        super().__init__()
        self.c1_r, self.c2_r, self.c3_r = conv3(n, m), conv3(m, m), conv3(m, n)
        self.c5 = nn.Conv2d(n, n, 1)
        self.esa = ESA(n, f, short=True)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in (self.c1_r, self.c2_r, self.c3_r):
            h = F.leaky_relu(layer(h), RIVAL_SLOPE)
        return self.esa(self.c5(h + x))


class Rival(nn.Module):
    """Frame of E-RFDN and RLFN: `make_block(n)` returns one block.

    E-RFDN joins the outputs of all blocks (`joined`); RLFN takes the last one.
    """

    def __init__(self, config: Any, make_block: Any, *, joined: bool) -> None:
        super().__init__()
        n, blocks = config.n_feats, config.blocks
        self.joined = joined
        self.fea_conv = conv3(config.n_colors, n)
        self.names = [f'B{i + 1}' for i in range(blocks)]
        for name in self.names:
            self.add_module(name, make_block(n))
        if joined:
            self.c = nn.Sequential(nn.Conv2d(n * blocks, n, 1))
        self.LR_conv = conv3(n, n)
        shuffle = nn.PixelShuffle(config.scale)
        self.upsampler = nn.Sequential(conv3(n, config.n_colors * config.scale**2), shuffle)

    def forward(self, x: Tensor) -> Tensor:
        first = h = self.fea_conv(x)
        outputs = []
        for name in self.names:
            h = self.get_submodule(name)(h)
            outputs.append(h)
        if self.joined:
            h = F.leaky_relu(self.c(torch.cat(outputs, 1)), RIVAL_SLOPE)
        return self.upsampler(self.LR_conv(h) + first)


def fmen(*, deploy: bool, **config: Any) -> nn.Module:
    """Return an FMEN, given the fields of its configuration."""
    return TorchFMEN(SimpleNamespace(**config), deploy=deploy)


def rfdn(**config: Any) -> nn.Module:
    """Return an E-RFDN, given the fields of its configuration."""
    return Rival(SimpleNamespace(**config), RFDB, joined=True)


def rlfn(**config: Any) -> nn.Module:
    """Return an RLFN, given the fields of its configuration."""
    c = SimpleNamespace(**config)
    return Rival(c, lambda n: RLFB(n, c.mid_feats, c.attention_feats), joined=False)
