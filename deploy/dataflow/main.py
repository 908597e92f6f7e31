"""What the Flex Template's launcher and Airflow run: the tag job, submitted and left to itself."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence

from pipelines import tag
from pipelines.cli import leave

# Of the job on Dataflow, which both add: JSON, or a key and a value that has neither dot nor slash.
_LABEL_OF_JOB = re.compile(r"--labels=(\{.*\}|[a-z][a-z0-9_-]*=[a-z0-9_-]*)", re.DOTALL)


def job_argv(argv: Sequence[str]) -> Iterator[str]:
    """The job's own command line, where `--labels` are label sets; Beam knows `--label` too."""
    for word in argv:
        label = _LABEL_OF_JOB.fullmatch(word)
        yield f"--label={label[1]}" if label else word
    yield "--detach"


if __name__ == "__main__":
    leave(tag.main(list(job_argv(sys.argv[1:]))))
