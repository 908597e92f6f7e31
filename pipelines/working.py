"""A worker of a local tag job: a process with a model of its own, which is given shards.

    python -m pipelines.working DESCRIPTOR

It does what the job's own process would do with them, and is started by `transforms.handing` only.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from transforms.crew import Foreman
from transforms.repeating import Repeating

if TYPE_CHECKING:
    from transforms.accounting import Account
    from transforms.records import Shard

TELL_EVERY_S = 0.2

# Of the process, as its stages are: what they are made of is pickled.
_foreman: Foreman
_accounts: list[Account] = []


def main() -> NoReturn:
    """Do the work, and end with it."""
    global _foreman
    _foreman = Foreman(int(sys.argv[1]))
    from pipelines import report

    # Before Beam, which has things to say while it is imported.
    report.set_up_logging(quiet=True, local=True)
    from transforms.lightimports import import_beam

    import_beam()
    from pipelines import endings, running
    from transforms.handing import Result
    from transforms.model import loaded_towers, tower_in_use

    told, label_vectors = _foreman.order()
    spec, model, ledger = pickle.loads(told)
    quiet = spec.quiet or spec.json
    report.set_up_logging(quiet=quiet, local=True)
    # The rest is said once, by the job.
    logging.getLogger("beamtag").setLevel(logging.ERROR if quiet else logging.WARNING)
    try:
        with running.interpreter_for_threads(), _progress_told():
            _work(spec, model, ledger, label_vectors)
    except Exception as error:
        _foreman.broken(endings.cause_of(error, traced=not quiet))
    _foreman.done(Result(_accounts, loaded_towers(), tower_in_use()))


def _work(spec: Any, model: Any, ledger: Any, label_vectors: Any) -> None:
    import apache_beam as beam

    from pipelines.graph import tagged
    from pipelines.running import empty_pipeline
    from transforms.storage import use_storage_options

    use_storage_options(spec.storage_options)
    pipeline = empty_pipeline(spec)
    vectors = pipeline | "LabelVectors" >> beam.Create([label_vectors])
    shards = pipeline | "Begin" >> beam.Impulse() | "TakeShards" >> beam.FlatMap(_shards)
    _ = tagged(shards, spec, model, vectors, ledger) | "KeepAccounts" >> beam.Map(_keep)
    pipeline.run().wait_until_finish()


def _shards(_: bytes) -> Iterator[Shard]:
    yield from _foreman.work()


def _keep(account: Account) -> None:
    _accounts.append(account)


@contextlib.contextmanager
def _progress_told() -> Iterator[None]:
    """Tell the foreman now and then how far this process is; it counts together."""
    from transforms.progress import progress

    def tell() -> None:
        if any((counts := progress.take()).values()):
            _foreman.note(counts)

    with Repeating(tell, TELL_EVERY_S):
        yield
    tell()


if __name__ == "__main__":
    # Of the module by its name: what is pickled of it must not be that of a program.
    from pipelines import working

    working.main()
