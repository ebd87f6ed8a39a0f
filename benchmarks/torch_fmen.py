"""Contender: FMEN in plain PyTorch, as a PyTorch user would write it from the paper.

Images are NCHW, float32, RGB in 0..255. Parameter names are those of the published checkpoints. JAX
is not imported, so that the memory of a process is that of PyTorch alone.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from fmen_jax.models.fmen import FMENConfig

SLOPE = 0.1


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
    """FMEN: the published train graph, or the folded graph if `deploy` is true."""

    def __init__(self, config: 'FMENConfig', *, deploy: bool) -> None:
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


def compiled(module: nn.Module) -> Any:
    """Return the module, compiled separately for each input size.

    By default, PyTorch warns and continues uncompiled after eight sizes. Here the limit is 64, and
    reaching it is an error.
    """
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(module, dynamic=False)


def train_step(
    name: str,
    config: 'FMENConfig',
    batch: Mapping[str, np.ndarray],
    *,
    rate: float,
    state: Mapping[str, np.ndarray] | None = None,
) -> Callable[[], float]:
    """Return a train step with L1 loss and Adam on a fixed batch.

    A call of the step returns the loss before the update. The name of the contender says whether
    the step uses channels last, is compiled, and uses autocast to bfloat16.
    """
    model = TorchFMEN(config, deploy=False)
    if state is not None:
        model.load_state_dict({key: torch.tensor(value) for key, value in state.items()})
    layout = torch.channels_last if 'channels_last' in name else torch.contiguous_format
    model = model.to(memory_format=layout).train()  # pyright: ignore[reportCallIssue]
    run: Any = compiled(model) if 'compiled' in name else model
    optimizer = torch.optim.Adam(model.parameters(), rate, eps=1e-8)

    def call() -> float:
        lr, hr = (
            torch.from_numpy(batch[k]).permute(0, 3, 1, 2).float().contiguous(memory_format=layout)
            for k in ('lr', 'hr')
        )
        optimizer.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled='bfloat16' in name):
            output = run(lr)
        loss = F.l1_loss(output.float(), hr)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return call
