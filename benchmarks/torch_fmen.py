"""Contender: FMEN in plain PyTorch (`fmen_jax.parity.torch_fmen`), compiled and trained.

JAX is not imported, so that the memory of a process is that of PyTorch alone.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fmen_jax.parity.torch_fmen import TorchFMEN

if TYPE_CHECKING:
    from fmen_jax.models.fmen import FMENConfig


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
