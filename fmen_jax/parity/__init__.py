"""Proof that a network computes in JAX what a PyTorch implementation of it computes.

    from fmen_jax.parity import assert_parity, compare, run_reference
    dump = run_reference(network, 'their_code.py:FMEN', checkpoint='model.pth')
    print(compare(network, dump).text())

Nothing is imported before it is used: `torch_fmen.py` also serves processes without JAX.
"""

from typing import TYPE_CHECKING, Any

__all__ = ['Dump', 'Report', 'assert_parity', 'compare', 'run_reference']

if TYPE_CHECKING:
    from fmen_jax.parity.dump import Dump
    from fmen_jax.parity.reference import run_reference
    from fmen_jax.parity.report import Report
    from fmen_jax.parity.stages import assert_parity, compare

_HOMES = {
    'Dump': 'dump',
    'Report': 'report',
    'assert_parity': 'stages',
    'compare': 'stages',
    'run_reference': 'reference',
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
