"""Bytes of the compiled deploy graph at x4, against E-RFDN's and RLFN's, and the maps behind them.

A map is [H, W, 50] in float32, of the LR size: the width of all three networks. Peak bytes are
temporary ones, arguments (image and weights) and output together. The engine's own program is
measured, and the same with XLA's convolutions, as other machines have it.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import contenders
from fmen_jax.runtime.compilation import jit

# LR rows and columns of outputs of 1280x720 and 1920x1080
SIZES = ((180, 320), (270, 480))

_LINE = re.compile(r'\s*(?:ROOT )?%([\w.\-]+) = f32\[([\d,]*)\]\S* ([\w\-]+)\((.*)')
_OPERAND = re.compile(r'%([\w.\-]+)')
_VIEWS = ('bitcast', 'get-tuple-element')


def measure(*, quick: bool) -> dict[str, Any]:
    """Rows, and the reductions against E-RFDN."""
    networks = {
        'FMEN-S': contenders.network(),
        'E-RFDN': contenders.rival('e_rfdn'),
        'RLFN': contenders.rival('rlfn'),
    }
    found: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    for height, width in ((32, 48),) if quick else SIZES:
        one_map = height * width * 50 * 4
        peaks: dict[tuple[str, bool], dict[str, Any]] = {}
        for name, net in networks.items():
            for libraries in (True, False):
                x = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
                program: Any = jit(net.module.apply, libraries=libraries)
                compiled = program.lower(net.variables, x).compile()
                plan = compiled.memory_analysis()
                temp, output = plan.temp_size_in_bytes, plan.output_size_in_bytes
                row = {
                    'height': height * 4,
                    'width': width * 4,
                    'contender': name,
                    'convolutions': 'oneDNN' if libraries else 'XLA',
                    'temp_bytes': temp,
                    'peak_bytes': temp + output + plan.argument_size_in_bytes,
                    'temp_maps': temp / one_map,
                    'live_channels': live_channels(compiled.as_text(), height, width),
                }
                peaks[name, libraries] = row
                found.append(row)
        mine, theirs = peaks['FMEN-S', True], peaks['E-RFDN', True]
        summary[f'{height * 4}x{width * 4}'] = {
            'temp_reduction_vs_e_rfdn': 1 - mine['temp_bytes'] / theirs['temp_bytes'],
            'peak_reduction_vs_e_rfdn': 1 - mine['peak_bytes'] / theirs['peak_bytes'],
        }
    return {'rows': found, 'summary': summary}


def live_channels(program: str, height: int, width: int) -> list[int]:
    """Channels of the LR maps that are alive where their sum is largest, read from the program.

    A value lives from the operation that makes it to the last one that reads it. The output of an
    elementwise fusion takes the place of an operand of its size that is read there last.
    """
    entry = program[program.index('\nENTRY') :]
    lines = [match.groups() for match in map(_LINE.match, entry.splitlines()) if match]
    of: dict[str, str] = {}  # the value behind a view
    channels: dict[str, int] = {}
    kinds: list[tuple[str, str, list[str]]] = []
    for name, shape, kind, rest in lines:
        operands = [of[o] for o in _OPERAND.findall(rest.split(', metadata')[0]) if o in of]
        of[name] = operands[0] if kind in _VIEWS and operands else name
        values = math.prod(int(d) for d in shape.split(',') if d)
        inner = kind not in (*_VIEWS, 'parameter') and values % (height * width) == 0
        channels[name] = values // (height * width) if inner else 0
        kinds.append((name, kind, operands))
    last = {operand: i for i, (_, _, operands) in enumerate(kinds) for operand in operands}
    alive: list[str] = []
    most: list[int] = []
    for i, (name, kind, operands) in enumerate(kinds):
        ending = {o for o in operands if last[o] == i}
        same = [o for o in ending if kind == 'fusion' and channels[o] == channels[name]]
        # the program's output has a place of its own
        held = [o for o in alive if o not in same[:1]] + ([name] if name in last else [])
        now = [channels[o] for o in held if channels[o]]
        most = max(most, now, key=sum)
        alive = [o for o in [*alive, name] if o not in ending and last.get(o, -1) > i]
    return most
