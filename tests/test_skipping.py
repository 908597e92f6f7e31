"""What is done is skipped: alike in one process and by a join, of whose form no row may tell."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that
from conftest import encoded, picture, write_pictures
from faulty import faulty_server
from nights import night, rows
from packing import pack
from tables import Item, embeddings, failures

from pipelines import graph, running, tag
from pipelines.options import parse_tag
from transforms.accounting import Account, merge_accounts
from transforms.ledger import TAR_END, Ledger, LedgerSpec, item_key
from transforms.modelstore import describe_model
from transforms.records import MediaRef, Retry, Shard
from transforms.runlock import take_place
from transforms.skipping import ACCOUNTS, JoinDone, SkipDone, SkipDoneTars
from transforms.stored import stored_files

OUTCOMES: list[dict[str, Any]] = [
    {"reason": "not_an_image", "stage": "decode"},
    {"reason": "not_found", "stage": "read"},
    {"reason": "unavailable", "stage": "read", "retryable": True},
    {"reason": "not_finite", "stage": "embed"},
    {"reason": "not_finite", "stage": "embed", "model": "other"},
]
Found = tuple[list[MediaRef], list[Shard], Account]


def keeping(folder: Path, name: str) -> Callable[[list[Any]], None]:
    def keep(found: list[Any]) -> None:
        (folder / name).write_bytes(pickle.dumps(found))

    return keep


def taken(folder: Path, outputs: dict[str, Any]) -> None:
    for name, pcoll in outputs.items():
        assert_that(pcoll, keeping(folder, name), label=name)


def told(folder: Path) -> Found:
    new, tars, accounts = (
        pickle.loads((folder / name).read_bytes()) for name in ("new", "new_tars", ACCOUNTS)
    )
    return new, tars, merge_accounts(accounts)


def by_ledger(folder: Path, refs: list[MediaRef], tars: list[Shard], spec: LedgerSpec) -> Found:
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        items = pipeline | "Refs" >> beam.Create(refs) | SkipDone(spec)
        of_tars = pipeline | "Tars" >> beam.Create(tars) | SkipDoneTars(spec)
        accounts = (items[ACCOUNTS], of_tars[ACCOUNTS]) | beam.Flatten()
        taken(folder, {"new": items.new, "new_tars": of_tars.new, ACCOUNTS: accounts})
    return told(folder)


def by_join(folder: Path, refs: list[MediaRef], tars: list[Shard], spec: LedgerSpec) -> Found:
    files = [
        *stored_files(spec.output, "embeddings", model=spec.model_id),
        *stored_files(spec.output, "failures"),
    ]
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        joined = {
            "listed": pipeline | "Refs" >> beam.Create(refs),
            "tars": pipeline | "Tars" >> beam.Create(tars),
            "files": pipeline | "Files" >> beam.Create(files),
        } | JoinDone(spec)
        taken(folder, joined)
    return told(folder)


def an_output(output: Path, draw: random.Random) -> tuple[list[Item], list[Shard]]:
    """Files of every kind; the items and the tars that they may be of."""
    names = [f"gs://archive/{name}" for name in "abcdef"]
    items = list(itertools.product(names, ["1", "2", "text-0a1b2c3d", ""], [None, "x"]))
    for shard in range(3):
        some = draw.sample(items, draw.randint(0, 12))
        embeddings(output, some, shard=str(shard), model=draw.choice(["m", "m", "other"]))
        rows = [(item, draw.choice(OUTCOMES)) for item in draw.sample(items, draw.randint(0, 12))]
        failures(output, rows, shard=str(shard))
    tars = []
    for number in range(4):
        url, name = f"gs://archive/{number}.tar", str(number) * 16
        tars.append(Shard(name, (MediaRef(url, "1"),), tar=True))
        members = [(f"{url}#{place}", "1", str(place)) for place in range(6)]
        for run, parts in (("aaaaaa", draw.randint(0, 3)), ("bbbbbb", draw.randint(0, 1))):
            for part in range(parts):
                own = members[2 * part : 2 * part + 2]
                cut = draw.randint(0, 2)
                footer = {TAR_END: b""} if part + 1 == parts and draw.random() < 0.7 else {}
                shard = f"{name}-{run}-{part:04d}"
                embeddings(output, own[:cut], shard=shard, footer=footer)
                failed = [(item, draw.choice(OUTCOMES)) for item in own[cut:]]
                failures(output, failed, shard=shard)
        items += members
    return items, tars


@pytest.mark.parametrize("retry", ["none", "retryable", "all"])
def test_both_forms_skip_the_same(tmp_path, retry: Retry):
    seen: Counter[str] = Counter()
    for seed in range(4):
        draw = random.Random(f"{retry} {seed}")
        output = tmp_path / str(seed)
        items, tars = an_output(output, draw)
        refs = [
            MediaRef(uri, version, id=id_, text=version and "a text")
            for uri, version, id_ in draw.choices(items, k=40)
        ]
        # A manifest's text alone is an item of its own, whose version the manifest does tell.
        refs += [MediaRef("gs://m.csv#1", "text-0a1b2c3d", fetched=False)]
        tars = draw.sample(tars, 3)
        spec = LedgerSpec(str(output), "m", retry, f"run-{retry}-{seed}")
        new, new_tars, account = by_ledger(tmp_path, refs, tars, spec)
        joined, joined_tars, joined_account = by_join(tmp_path, refs, tars, spec)

        assert Counter(ref._replace(held=()) for ref in joined) == Counter(new)
        assert joined_account == account
        assert account.listed == len(set(refs)) + sum(
            account_of(tar, spec) for tar in tars if tar not in new_tars
        )
        # What only reading can tell, the references know as the ledger does.
        ledger = Ledger(spec)
        for ref in joined:
            known = {held.version: held.reason or True for held in ref.held}
            versions = {item[1] for item in items} if ref.version_unknown else set()
            states = {of: ledger.state(item_key(ref.uri, of, ref.id)) for of in versions}
            assert known == {of: state for of, state in states.items() if state is not False}
            seen["versions"] += len(known)
        assert sorted(tar.shard_id for tar in joined_tars) == sorted(
            tar.shard_id for tar in new_tars
        )
        for tar in joined_tars:
            (ref,) = tar.refs
            known = {bytes.fromhex(held.version): held.reason or True for held in ref.held}
            members = [item_key(*item) for item in items if item[0].startswith(f"{ref.uri}#")]
            states = {key: ledger.state(key) for key in members}
            assert known == {key: state for key, state in states.items() if state is not False}
            seen["members"] += len(known)
        seen.update(reused=account.reused, known=account.known_failures.total(), new=len(new))
        seen.update(done=len(tars) - len(new_tars), tars=len(new_tars))
    # Every kind of thing has happened.
    assert all(seen[what] for what in ("reused", "new", "done", "tars", "versions", "members"))
    assert (seen["known"] > 0) == (retry != "all")


def account_of(tar: Shard, spec: LedgerSpec) -> int:
    held = Ledger(spec).tars[tar.shard_id]
    return held.embedded + len(held.failed)


# The whole graph in its distributed form.


def distributed(arguments: list[str]) -> dict[str, Any]:
    """A run as a distributed engine is given it, on the local one; its record's counts."""
    spec = dataclasses.replace(parse_tag(arguments), runner="some engine")
    assert not spec.is_local
    model = describe_model(spec.model)
    record_url = f"{spec.run.output}/runs/{spec.run.run_id}.json"
    with take_place(spec.run.output, spec.run.run_id), beam.Pipeline(FnApiRunner()) as pipeline:
        header = running.record_header(spec, model, tag.SETTINGS)
        graph.build(pipeline, spec, model, record_url, header)
    record: dict[str, Any] = json.loads(Path(record_url).read_text())
    return record


OWN = {"run_id", "embedded_at", "tagged_at", "failed_at"}
"""What two runs that do the same do not have in common."""


def check_same(one: Path, other: Path) -> None:
    for table in ("embeddings", "predictions", "failures"):
        found = [rows(output, table) for output in (one, other)]
        assert len(found[0]) == len(found[1])
        for row, expected in zip(*found, strict=True):
            for name in expected.keys() - OWN:
                is_number = name in ("embedding", "score", "similarity")
                value = pytest.approx(expected[name], abs=1e-5) if is_number else expected[name]
                assert row[name] == value, (row["uri"], name)


def test_the_whole_graph_in_both_forms(job, vit, labels, tmp_path):
    shelf = write_pictures(tmp_path / "archive", 5)
    (shelf / "bad.jpg").write_bytes(b"<html>")
    web = write_pictures(tmp_path / "web", 3, width=80)
    (web / "2.jpg").write_bytes(b"no picture")
    members = [(f"{n}.jpg", encoded(picture(seed=20 + n))) for n in range(5)]
    (tmp_path / "set.tar").write_bytes(pack(members))
    with faulty_server(folder=web) as server:
        manifest = tmp_path / "list.csv"
        lines = ["00000.jpg,", "00001.jpg,a dog", "2.jpg,", "gone.jpg,", "gone.jpg,a tree"]
        uris = "".join(f"{server.url}/{line}\n" for line in lines)
        manifest.write_text(f"uri,text\n{uris},only words\n")
        inputs = [f"--input={shelf}", f"--input={manifest}", f"--input={tmp_path / 'set.tar'}"]
        shared = ["--shard_size=3", "--batch_size=2"]
        outputs = {form: tmp_path / form for form in ("local", "distributed")}

        def both(day: int, *flags: str) -> tuple[int, ...]:
            dated = [*inputs, *shared, f"--run_date=2026-01-0{day}", *flags]
            done = night(job, *dated, output=outputs["local"])
            model = f"--model=local-dir:{vit}"
            output = f"--output={outputs['distributed']}"
            record = distributed([*dated, model, output, f"--labels={labels}"])
            assert record["status"] == "finished"
            for part in ("counts", "failures", "known_failures", "modalities", "scored"):
                assert record[part] == done.record[part], (day, part)
            check_same(*outputs.values())
            return done.counts

        assert both(1) == (17, 0, 14, 0, 3)
        # Reading tells the versions of what the manifest names; nothing is embedded again.
        assert both(2) == (17, 14, 0, 0, 3)
        (shelf / "00001.jpg").write_bytes(encoded(picture(seed=30)))
        (shelf / "00002.jpg").unlink()
        (shelf / "new.jpg").write_bytes(encoded(picture(seed=31)))
        (web / "00000.jpg").write_bytes(encoded(picture(seed=32)))
        (tmp_path / "set.tar").write_bytes(pack([*members, ("9.jpg", encoded(picture(seed=33)))]))
        assert both(3) == (18, 6, 4, 5, 3)
        for retry in ("none", "all"):
            assert both(4, f"--retry={retry}") == (18, 15, 0, 0, 3)
