"""README's tables say what the command line does."""

from __future__ import annotations

import re
from pathlib import Path

from pipelines.config import option_name
from pipelines.flags import tag_parser

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_table_of_options_is_that_of_the_help():
    rows = re.findall(r"^\| (`--\S+`(?:, `--\S+`)*) \|", README, re.M)
    in_table = re.findall(r"`--(\w+)`", " ".join(rows))
    options = [name for action in tag_parser()._actions if (name := option_name(action))]
    assert sorted(in_table) == sorted(options)
