from __future__ import annotations

import datetime
import json
from collections import Counter

from transforms.accounting import EXAMPLES, Account, Example, finished, merge_accounts
from transforms.recording import write_run_record
from transforms.records import Effort

STARTED = "2026-01-01T00:00:00.000+00:00"
HEADER = {
    "run_id": "r",
    "started_at": STARTED,
    "model": {"device": "cpu", "precision": "fp32"},
    "settings": {},
}


def shard(number: int) -> Account:
    return Account(
        embedded=3,
        bytes=10,
        failures=Counter(not_found=1),
        labels={"set-0": Counter(dog=2, cat=1)},
        effort=Effort({"device": 0.5}, number, {"device": 1.0}, 10.0 - number, {f"m/{number}": 2}),
        files=[f"f{number}"],
        examples=[Example(f"u{number}", "dog", 0.5)],
    )


def test_accounts_add_up():
    merged = merge_accounts([Account(listed=12), *[shard(number) for number in range(3)]])
    assert (merged.listed, merged.embedded, merged.failed, merged.bytes) == (12, 9, 3, 30)
    assert merged.labels == {"set-0": Counter(dog=6, cat=3)}
    workers = {"m/0": 2, "m/1": 2, "m/2": 2}
    assert merged.effort == Effort({"device": 1.5}, 3, {"device": 3.0}, 8.0, workers)
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
    assert write_run_record(merged, url, HEADER) == url
    record = json.loads((tmp_path / "runs" / "r.json").read_text())
    assert next(iter(record)) == "run_id"
    assert record["status"] == "finished"
    assert record["counts"] == {
        "listed": 4, "reused": 0, "embedded": 3, "duplicates": 0, "failed": 1,
    }  # fmt: skip
    assert record["failures"] == {"not_found": 1}
    assert record["labels"] == {"set-0": {"dog": 2, "cat": 1}}
    assert record["files"] == ["f0"]
    assert record["stages"] == {"device": {"busy": 0.5, "waiting": 1.0}}
    assert record["workers"] == {"processes": 1, "cores": 2}
    assert record["device_utilisation"]["share"] == 0.333


def test_cores_of_a_machine_count_once_for_all_its_processes():
    cores = {"a/1": 4, "a/2": 4, "b/1": 8}
    record = finished(Account(effort=Effort(workers=cores)), STARTED)
    assert record["workers"] == {"processes": 3, "cores": 12}


def test_startup_is_what_goes_by_before_the_first_batch_is_read():
    started = datetime.datetime.fromisoformat(STARTED).timestamp()
    efforts = [Account(effort=Effort(began=started + after)) for after in (9.5, 2.5, 7.0)]
    assert finished(merge_accounts(efforts), STARTED)["startup_seconds"] == 2.5
    assert finished(Account(), STARTED)["startup_seconds"] is None


def test_a_lost_item_is_said(tmp_path):
    url = str(tmp_path / "r.json")
    write_run_record(merge_accounts([Account(listed=5), shard(0)]), url, HEADER)
    assert json.loads((tmp_path / "r.json").read_text())["status"] == "unbalanced"


def test_a_run_of_nothing_is_balanced():
    assert merge_accounts([Account(listed=0)]).balanced
