from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from transforms.records import MediaRef
from transforms.sampling import Sample


def refs(numbers) -> list[MediaRef]:
    return [MediaRef(f"/archive/{number:05d}.jpg", "v", 10) for number in numbers]


def sampled(items: list[MediaRef], size: int = 50) -> Sample:
    sample = Sample(size)
    sample.add(items)
    return sample


def test_it_is_spread_over_all_of_them():
    sample = sampled(refs(range(10_000)), 500)
    numbers = [int(ref.uri[9:14]) for ref in sample.refs]
    assert len(numbers) == 500
    assert numbers == sorted(numbers)
    tenths = [sum(start <= number < start + 1000 for number in numbers) for start in
              range(0, 10_000, 1000)]  # fmt: skip
    # A binomial count of 50, give or take four times its deviation.
    assert all(23 <= tenth <= 77 for tenth in tenths)


@given(st.permutations(range(40)), st.integers(1, 60))
def test_which_ones_does_not_depend_on_their_order(order, size):
    shuffled = sampled(refs(order), size)
    assert set(shuffled.refs) == set(sampled(refs(range(40)), size).refs)
    assert [ref for ref in refs(order) if ref in shuffled.refs] == shuffled.refs


def test_an_archive_that_grows_keeps_most_of_its_sample():
    before = set(sampled(refs(range(1000)), 100).refs)
    after = set(sampled(refs(range(1100)), 100).refs)
    assert len(before & after) > 75


def test_all_are_counted_and_rows_of_one_uri_told_apart():
    sample = Sample(2)
    sample.add([MediaRef("/a.jpg", "v", 3), MediaRef("/b.jpg", "v"), MediaRef("/a.jpg", "v", 4)])
    assert (sample.items, sample.bytes, sample.unsized) == (3, 7, 1)
    rows = sampled([MediaRef("/a.jpg", "v", 1, id=str(number)) for number in range(100)], 10)
    ids = [int(ref.id or "") for ref in rows.refs]
    assert len(set(ids)) == 10
    assert ids != list(range(10))
