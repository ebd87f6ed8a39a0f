"""Mutated image files; `python -m tests.fuzz pictures --cases 5000` does more of them."""

import struct

from tests.fuzz.isolation import run_isolated
from tests.fuzz.outcome import Case, summarize
from tests.fuzz.pictures import MUTATIONS, cases, originals, png, png_chunks


def test_mutated_pictures() -> None:
    measured = list(run_isolated('tests.fuzz.pictures', cases(seed=1, count=150)))
    summary = summarize(one.outcome for one in measured)
    assert summary['failed'] == {}
    assert summary['cases'] == 150
    # Mutations that nothing notices would be no test.
    assert summary['kinds']['error'] > 40
    assert summary['kinds']['equal'] > 0


def test_the_same_seed_gives_the_same_cases() -> None:
    first, again, other = (list(cases(seed, 200)) for seed in (3, 3, 4))
    assert first == again
    assert [case.data for case in first] != [case.data for case in other]
    assert {case.name.partition('/')[2].rpartition(' ')[0] for case in first} == {*MUTATIONS}


def test_chunks_are_put_together_as_they_were() -> None:
    data = originals()['rgb.png']
    assert png(png_chunks(data)) == data


def test_a_tall_image_that_cannot_be_decoded_is_refused_at_once() -> None:
    """Its rotation exchanges its sides. libvips took a time quadratic in its rows."""
    data = originals()['rgb.avif']
    box = data.index(b'ispe')
    claimed = data[: box + 8] + struct.pack('>II', 60_000, 2**31 - 1) + data[box + 16 :]
    (found,) = run_isolated('tests.fuzz.pictures', [Case('tall', claimed, '.avif')])
    assert found.outcome.kind == 'error'
    assert 'not a complete, readable image' in found.outcome.detail
