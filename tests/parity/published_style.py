"""FMEN in plain PyTorch in the style of the published code, written from the description alone.

It imports torchsummaryX, takes one namespace `args`, and adds in place. Tests plant faults in
copies of this file by replacing text; the probe executes it, and pytest never imports it.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torchsummaryX import summary  # noqa: F401  # pyright: ignore

lrelu_value = 0.1


def act(x):
    return F.leaky_relu(x, lrelu_value)


def pad(x, value):
    n, c, h, w = x.shape
    out = value.view(1, -1, 1, 1).expand(n, c, h + 2, w + 2).clone()
    out[:, :, 1:-1, 1:-1] = x
    return out


class RRRB(nn.Module):
    def __init__(self, n_feats, ratio):
        super().__init__()
        self.expand_conv = nn.Conv2d(n_feats, ratio * n_feats, 1)
        self.fea_conv = nn.Conv2d(ratio * n_feats, ratio * n_feats, 3)
        self.reduce_conv = nn.Conv2d(ratio * n_feats, n_feats, 1)

    def forward(self, x):
        out = self.expand_conv(x)
        identity = out
        out = pad(out, self.expand_conv.bias)
        out = self.fea_conv(out)
        out += identity
        out = self.reduce_conv(out)
        out += x
        return out


class ERB(nn.Module):
    def __init__(self, n_feats, ratio):
        super().__init__()
        self.conv1 = RRRB(n_feats, ratio)
        self.conv2 = RRRB(n_feats, ratio)

    def forward(self, x):
        return self.conv2(act(self.conv1(x)))


class HFAB(nn.Module):
    def __init__(self, n_feats, up_blocks, mid_feats, ratio):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(n_feats)
        self.bn2 = nn.BatchNorm2d(mid_feats)
        self.bn3 = nn.BatchNorm2d(n_feats)
        self.squeeze = nn.Conv2d(n_feats, mid_feats, 3)
        self.convs = nn.Sequential(*[ERB(mid_feats, ratio) for _ in range(up_blocks)])
        self.excitate = nn.Conv2d(mid_feats, n_feats, 3)

    def border(self, bn):
        std = torch.sqrt(bn.running_var + bn.eps)
        return bn.bias - bn.running_mean * bn.weight / std

    def forward(self, x):
        out = self.bn1(x)
        out = act(self.squeeze(pad(out, self.border(self.bn1))))
        out = act(self.convs(out))
        out = self.bn2(out)
        out = self.bn3(self.excitate(pad(out, self.border(self.bn2))))
        return torch.sigmoid(out) * x


class FMEN(nn.Module):
    def __init__(self, args):
        super().__init__()
        n, scale = args.n_feats, args.scale[0]
        assert args.rgb_range == 255
        blocks, a = args.up_blocks, args.attention_expand_ratio
        self.scale = scale
        self.head = nn.Conv2d(args.n_colors, n, 3, padding=1)
        self.warmup = nn.Sequential(
            nn.Conv2d(n, n, 3, padding=1), HFAB(n, blocks[0], args.mid_feats - 4, a)
        )
        self.ERBs = nn.ModuleList([ERB(n, args.backbone_expand_ratio) for _ in blocks[1:]])
        self.HFABs = nn.ModuleList([HFAB(n, u, args.mid_feats, a) for u in blocks[1:]])
        self.lr_conv = nn.Conv2d(n, n, 3, padding=1)
        self.tail = nn.Sequential(
            nn.Conv2d(n, args.n_colors * scale**2, 3, padding=1), nn.PixelShuffle(scale)
        )

    def forward(self, x):
        x = self.head(x)
        h = self.warmup(x)
        for erb, hfab in zip(self.ERBs, self.HFABs, strict=True):
            h = hfab(erb(h))
        h = self.lr_conv(h)
        h += x
        return self.tail(h)
