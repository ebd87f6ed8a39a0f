"""A mutated file, and what became of reading it."""

import collections
import dataclasses
from collections.abc import Iterable
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Case:
    """A mutated file."""

    name: str
    """Name of the original file and of the mutation, as ORIGINAL/MUTATION."""
    data: bytes
    suffix: str
    """Extension of the file, such as '.pt'."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    kind: Literal['equal', 'different', 'error', 'failed']
    """'equal': read as the original file; 'different': read as something else, which could not be
    detected; 'error': refused with one clear error; 'failed': anything else."""
    detail: str
    """Why a difference could not be detected, the error, or the failure."""


def summarize(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Return the number of outcomes of each kind, and the details of differences and failures."""
    outcomes = list(outcomes)
    kinds = collections.Counter(outcome.kind for outcome in outcomes)
    details = {
        kind: dict(collections.Counter(o.detail for o in outcomes if o.kind == kind).most_common())
        for kind in ('different', 'failed')
    }
    return {'cases': len(outcomes), 'kinds': dict(kinds), **details}
