"""Inference of FMEN-S x4 on one image on the CPU, by size, and of other networks.

The contenders are ours, PyTorch, onnxruntime and OpenVINO. In float32, all contenders that run the
same network compute the same output. Contenders in bfloat16 have it in their names and are measured
in the same rounds, on CPUs that support it. onnxruntime and OpenVINO run the file exported by
PyTorch, except in the contenders named "ours".
"""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks import contenders
from benchmarks.turns import in_turn, ratio, rows
from fmen_jax.network import Network
from fmen_jax.runtime import onednn
from fmen_jax.runtime.compilation import jit

XLA_BFLOAT16 = 'ours, xla, bfloat16'
# LR rows and columns. The outputs have 64 to 2160 rows.
SIZES = ((16, 16), (64, 64), (180, 320), (540, 960))


def measure(*, quick: bool) -> dict[str, Any]:
    """Return rows of times and a summary of the most important ratios."""
    net = contenders.network()
    # Created first, because this disables OpenVINO's telemetry, which forks.
    ours = {
        'ours, xla': contenders.xla(net),
        'ours, auto': contenders.ours(net, name='auto'),
    }
    exported = contenders.torch_export(net)
    torches = {
        'torch': contenders.of_torch(net),
        'torch, channels_last': contenders.of_torch(net, channels_last=True),
    }
    if not quick:
        torches['torch, compiled'] = contenders.of_torch(net, compiled=True)
        torches['torch, channels_last, compiled'] = contenders.of_torch(
            net, channels_last=True, compiled=True
        )
    peers = {
        'onnxruntime': contenders.of_onnxruntime(exported),
        'openvino': contenders.of_openvino(exported),
    }
    tricks = {
        'ours, xla, without oneDNN': contenders.compiled(net, jit),
        'ours, xla, plain jit': contenders.compiled(net),
        'ours, onnxruntime': contenders.ours(net, name='onnxruntime'),
    }
    same = ours | torches | peers | tricks
    lower, lower_torches = _in_bfloat16(net, exported, quick=quick)
    others = lower | {
        'E-RFDN, xla': contenders.xla(contenders.rival('e_rfdn')),
        'RLFN, xla': contenders.xla(contenders.rival('rlfn')),
    }
    found: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    for height, width in SIZES[:1] if quick else SIZES:
        x = _picture(height, width)
        expected = same['torch'](x)
        differences = {n: float(np.abs(call(x) - expected).max()) for n, call in same.items()}
        calls = {n: functools.partial(call, x) for n, call in (same | others).items()}
        rounds = 1 if quick else int(np.clip(200_000 / (height * width), 5, 15))
        times = in_turn(calls, rounds)
        for row in rows(times, height=height, width=width):
            name = row['contender']
            dtype = 'bfloat16' if name in lower else 'float32'
            found.append(row | {'dtype': dtype, 'max_difference': differences.get(name)})
        best_torch = _fastest(times, torches)
        best_peer = _fastest(times, torches | peers)
        summary[f'{height}x{width}'] = {
            'best_torch': best_torch,
            'best_peer': best_peer,
            'xla_vs_best_torch': ratio(times, best_torch, 'ours, xla'),
            'auto_vs_best_peer': ratio(times, best_peer, 'ours, auto'),
            'xla_vs_without_onednn': ratio(times, 'ours, xla, without oneDNN', 'ours, xla'),
            'xla_vs_plain_jit': ratio(times, 'ours, xla, plain jit', 'ours, xla'),
        }
        if XLA_BFLOAT16 in lower:
            best = _fastest(times, lower_torches)
            summary[f'{height}x{width}'] |= {
                'best_torch_bfloat16': best,
                'xla_bfloat16_vs_best_torch_bfloat16': ratio(times, best, XLA_BFLOAT16),
                'xla_bfloat16_vs_xla': ratio(times, 'ours, xla', XLA_BFLOAT16),
            }
    return {
        'rows': found,
        'summary': summary,
        **{
            key: min(s[key]['median'] for s in summary.values())  # at the worst size
            for key in ('xla_vs_best_torch', 'auto_vs_best_peer')
        },
    }


def _in_bfloat16(
    net: Network, exported: bytes, *, quick: bool
) -> tuple[dict[str, contenders.Contender], list[str]]:
    """Return the contenders in bfloat16, and the names of those of PyTorch.

    On a CPU without bfloat16, only OpenVINO's contenders are returned, and OpenVINO computes in
    float32: PyTorch would take minutes, and our XLA engine falls back to float32 with a warning.
    """
    peers = {
        'ours, openvino, bfloat16': contenders.ours(net, name='openvino', dtype='bfloat16'),
        'openvino, bfloat16': contenders.of_openvino(exported, 'bf16'),
    }
    if 'bfloat16' not in onednn.supported_dtypes():
        return peers, []
    torches = {
        'torch, bfloat16': contenders.of_torch(net, bfloat16=True),
        'torch, channels_last, bfloat16': contenders.of_torch(
            net, channels_last=True, bfloat16=True
        ),
    }
    if not quick:
        torches['torch, channels_last, compiled, bfloat16'] = contenders.of_torch(
            net, channels_last=True, compiled=True, bfloat16=True
        )
    ours = {XLA_BFLOAT16: contenders.ours(net, name='xla', dtype='bfloat16')}
    return ours | torches | peers, list(torches)


def _picture(height: int, width: int) -> np.ndarray:
    import skimage.data

    photo = skimage.data.astronaut()
    tiled = np.tile(photo, (-(-height // 512), -(-width // 512), 1))
    return tiled[None, :height, :width].astype(np.float32)


def _fastest(times: dict[str, list[float]], among: Iterable[str]) -> str:
    return min(among, key=lambda name: float(np.median(times[name])))
