"""The engines that jobs are run on here: a cluster for all tests together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import BOOT, BUILD, PRISM, Cluster, cluster
from engines import ON_PRISM, Archive, Engine, make_archive
from jobs import Jobs, forking


@pytest.fixture(scope="session", autouse=True)
def fetched() -> None:
    for path in (PRISM, BOOT, BUILD / "flink" / "lib", BUILD / "jobserver"):
        assert path.exists(), f"{path} is missing: `make integration` fetches it"


@pytest.fixture(scope="session")
def jobs() -> Iterator[Jobs]:
    with forking() as started:
        yield started


@pytest.fixture(scope="session")
def flink(fetched: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("flink")) as started:
        yield started


@pytest.fixture(scope="session")
def on_flink(flink: Cluster) -> Engine:
    return Engine("flink", flink.flags)


@pytest.fixture(scope="session", params=["prism", "flink"])
def engine(request: pytest.FixtureRequest) -> Engine:
    on_flink: Engine
    if request.param == "flink":
        on_flink = request.getfixturevalue("on_flink")
        return on_flink
    return ON_PRISM


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory, vit: Path) -> Archive:
    return make_archive(tmp_path_factory.mktemp("archive"), vit)
