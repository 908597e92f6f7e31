from __future__ import annotations

import json
from collections import Counter

from transforms.accounting import EXAMPLES, Account, Example, merge_accounts
from transforms.writing import write_run_record

STARTED = "2026-01-01T00:00:00.000+00:00"


def shard(number: int) -> Account:
    return Account(
        embedded=3,
        bytes=10,
        failures=Counter(not_found=1),
        labels={"set-0": Counter(dog=2, cat=1)},
        seconds={"embed": 0.5},
        files=[f"f{number}"],
        examples=[Example(f"u{number}", "dog", 0.5)],
    )


def test_accounts_add_up():
    merged = merge_accounts([Account(listed=12), *[shard(number) for number in range(3)]])
    assert (merged.listed, merged.embedded, merged.failed, merged.bytes) == (12, 9, 3, 30)
    assert merged.labels == {"set-0": Counter(dog=6, cat=3)}
    assert merged.seconds == {"embed": 1.5}
    assert merged.balanced


def test_merging_in_any_order_gives_the_same():
    parts = [Account(listed=40), *[shard(number) for number in range(10)]]
    one = merge_accounts(parts)
    other = merge_accounts([merge_accounts(parts[7:]), merge_accounts(reversed(parts[:7]))])
    assert one.examples == other.examples
    assert len(one.examples) == EXAMPLES
    assert sorted(one.files) == sorted(other.files)


def test_parts_are_left_as_they_are():
    part = shard(1)
    merge_accounts([part, shard(2)])
    assert part == shard(1)


def test_the_record_of_a_balanced_run(tmp_path):
    url = str(tmp_path / "runs" / "r.json")
    merged = merge_accounts([Account(listed=4), shard(0)])
    assert write_run_record(merged, url, {"run_id": "r", "started_at": STARTED}) == url
    record = json.loads((tmp_path / "runs" / "r.json").read_text())
    assert next(iter(record)) == "run_id"
    assert record["status"] == "finished"
    assert record["counts"] == {
        "listed": 4, "reused": 0, "embedded": 3, "duplicates": 0, "failed": 1,
    }  # fmt: skip
    assert record["failures"] == {"not_found": 1}
    assert record["labels"] == {"set-0": {"dog": 2, "cat": 1}}
    assert record["files"] == ["f0"]


def test_a_lost_item_is_said(tmp_path):
    url = str(tmp_path / "r.json")
    write_run_record(merge_accounts([Account(listed=5), shard(0)]), url, {"started_at": STARTED})
    assert json.loads((tmp_path / "r.json").read_text())["status"] == "unbalanced"


def test_a_run_of_nothing_is_balanced():
    assert merge_accounts([Account(listed=0)]).balanced
