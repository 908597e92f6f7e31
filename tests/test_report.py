from __future__ import annotations

import io
import threading
import time
from collections import Counter

import pytest
from rich.console import Console

from pipelines import report
from transforms.accounting import Account, Example, finished
from transforms.progress import progress

STARTED = "2026-01-01T00:00:00.000+00:00"


@pytest.fixture(autouse=True)
def fresh_progress():
    progress.reset()
    yield
    progress.reset()


def shown(show, console: Console) -> str:
    stop = threading.Event()
    thread = threading.Thread(target=show, args=(console, stop))
    thread.start()
    progress.add(listed=200)
    progress.add(embedded=40, failed=10)
    time.sleep(0.4)
    stop.set()
    thread.join()
    return console.file.getvalue()


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(report, "BAR_EVERY_S", 0.05)
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    drawn = shown(report._show_bar, console)
    assert "tagging" in drawn
    assert "50/200" in drawn
    assert "items/s" in drawn


def test_a_line_now_and_then_elsewhere(monkeypatch, caplog):
    monkeypatch.setattr(report, "LINE_EVERY_S", 0.1)
    caplog.set_level("INFO", "beamtag")
    console = Console(file=io.StringIO(), force_terminal=False)
    shown(report._show_lines, console)
    assert console.file.getvalue() == ""
    assert caplog.messages[0].startswith("50 of 200 items, 10 failed, ")
    assert "items/s, about" in caplog.messages[0]


def test_no_lines_before_anything_is_listed(monkeypatch, caplog):
    monkeypatch.setattr(report, "LINE_EVERY_S", 0.05)
    caplog.set_level("INFO", "beamtag")
    stop = threading.Event()
    thread = threading.Thread(target=report._show_lines, args=(Console(), stop))
    thread.start()
    time.sleep(0.12)
    stop.set()
    thread.join()
    assert caplog.messages[0].startswith("listing: 0 items so far")


def test_markup_in_names_is_not_markup():
    account = Account(
        listed=1,
        embedded=1,
        labels={"set-0": Counter({"[red]": 1})},
        examples=[Example("/a/[bold]x.jpg", "[red]", 0.5)],
    )
    record = {
        "inputs": ["/a"],
        "output": "/out",
        "model_id": "m-0",
        "model": {},
        "label_sets": {"set-0": {}},
        **finished(account, STARTED),
        "bottleneck": {"kind": "decode", "sentence": "decode-bound: 4 more cores"},
    }
    console = Console(file=io.StringIO(), width=100)
    report.summarize(record, "/out/runs/r.json", console)
    text = console.file.getvalue()
    assert "\ndecode-bound: 4 more cores\n" in text
    assert "/a/[bold]x.jpg" in text
    assert text.count("[red]") == 2
