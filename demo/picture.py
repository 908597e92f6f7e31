"""Draw what a finished run printed as an SVG, for README: `python demo/picture.py RECORD.json`."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

from rich.console import Console

from pipelines import report

INTO = Path(__file__).parent / "demo.svg"


def main(record_path: str) -> None:
    """Print the record's summary into a recording console and save what it shows."""
    record = json.loads(Path(record_path).read_text("utf-8"))
    console = Console(record=True, width=144, file=io.StringIO(), highlight=False)
    report.summarize(record, str(Path(record_path).resolve()), console)
    picture = console.export_svg(title="make demo")
    # Rich links a font on the web; the viewer's own will do.
    INTO.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
