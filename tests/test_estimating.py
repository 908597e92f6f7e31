from __future__ import annotations

import pytest

from transforms.estimating import (
    LEAST_SPREAD,
    MEMBER_BYTES,
    SPREAD_OF_ONE,
    Fixed,
    Point,
    Range,
    TarRead,
    item_seconds,
    items_in_tars,
    run_seconds,
    writing_seconds,
)


def test_an_even_pace_has_the_least_range():
    points = [Point(10 + 2 * batch, 100 * batch) for batch in range(1, 6)]
    likely, least, most = item_seconds(10, points, apart=False)
    assert likely == pytest.approx(0.02)
    assert least == pytest.approx(0.02 / (1 + LEAST_SPREAD))
    assert most == pytest.approx(0.02 * (1 + LEAST_SPREAD))


def test_an_uneven_pace_has_two_standard_errors():
    points = [Point(1, 10), Point(4, 20), Point(5, 30), Point(8, 40)]
    # 0.1 and 0.3 s by turns: a mean of 0.2, a deviation of 0.1155, a standard error of 0.0577.
    likely, least, most = item_seconds(0, points, apart=False)
    assert likely == pytest.approx(0.2)
    assert most == pytest.approx(0.2 * (1 + 2 * 0.05774 / 0.2), rel=1e-3)
    assert least == pytest.approx(0.2 / (1 + 2 * 0.05774 / 0.2), rel=1e-3)


def test_beside_a_device_the_first_batch_is_left_out():
    # All is read before the first batch is embedded; from then on reading is ahead.
    points = [Point(9, 10), Point(10, 20), Point(11, 30)]
    assert item_seconds(0, points, apart=True).likely == pytest.approx(0.1)
    assert item_seconds(0, points, apart=False).likely == pytest.approx(11 / 30)


@pytest.mark.parametrize("apart", [True, False])
def test_one_batch_has_a_wide_range(apart):
    likely, least, most = item_seconds(0, [Point(5, 10)], apart=apart)
    assert (likely, most) == (0.5, pytest.approx(0.5 * (1 + SPREAD_OF_ONE)))
    assert least < likely


def test_workers_share_the_items_and_not_the_start():
    pace = Range(0.1, 0.05, 0.2)
    one = run_seconds(1000, Fixed(10, 0.001), pace)
    assert one == pytest.approx((111, 61, 211))
    assert run_seconds(1000, Fixed(10, 0.001), pace, workers=10) == pytest.approx((21, 16, 31))


def test_rows_are_encoded_one_by_one_and_files_take_their_time():
    record = {
        "stages": {"write": {"busy": 0.5, "waiting": 3.0}},
        "counts": {"listed": 500, "reused": 0, "embedded": 490, "duplicates": 0, "failed": 10},
    }
    assert writing_seconds(record) == pytest.approx(0.001)


def test_items_of_tars_by_what_was_read_of_some():
    whole = TarRead(10_000, 10, 7_000, ended=True)
    part = TarRead(50_000, 10, 10_000 - 10 * MEMBER_BYTES, ended=False)
    assert items_in_tars(100_000, [whole]) == 100
    assert items_in_tars(100_000, [whole, part]) == 100
    assert items_in_tars(100_000, []) == 0
