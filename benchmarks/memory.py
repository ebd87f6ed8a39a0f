"""Memory of the compiled deploy graph at x4, in bytes and in feature maps, vs. E-RFDN and RLFN.

A map is a float32 array [H, W, 50] of the LR size; all three networks have 50 channels. Peak bytes
are the sum of temporary memory, arguments (image and weights) and output. Two programs are
measured: that of the engine, and the same with XLA's convolutions, which other machines run.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import contenders
from fmen_jax.runtime.compilation import jit

# LR rows and columns for outputs of 1280x720 and 1920x1080.
SIZES = ((180, 320), (270, 480))

_LINE = re.compile(r'\s*(?:ROOT )?%([\w.\-]+) = f32\[([\d,]*)\]\S* ([\w\-]+)\((.*)')
_OPERAND = re.compile(r'%([\w.\-]+)')
_VIEWS = ('bitcast', 'get-tuple-element')


def measure(*, quick: bool) -> dict[str, Any]:
    """Return rows of bytes and a summary of the reductions relative to E-RFDN."""
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
                program: Any = jit(net.module.apply, onednn='always' if libraries else 'never')
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
    """Return the channels of the LR maps that are live at the program's peak.

    The peak is the operation at which the sum of live channels is largest. A value is live from the
    operation that produces it to the last one that reads it. The output of an elementwise fusion
    reuses the buffer of an operand of the same size whose last use is this fusion.
    """
    entry = program[program.index('\nENTRY') :]
    lines = [match.groups() for match in map(_LINE.match, entry.splitlines()) if match]
    of: dict[str, str] = {}  # the underlying value of each view
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
        # The program's output has its own buffer.
        held = [o for o in alive if o not in same[:1]] + ([name] if name in last else [])
        now = [channels[o] for o in held if channels[o]]
        most = max(most, now, key=sum)
        alive = [o for o in [*alive, name] if o not in ending and last.get(o, -1) > i]
    return most
