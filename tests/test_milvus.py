"""deploy/milvus as it is run, on the server of milvus-lite, which is Milvus in one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pytest
from pymilvus import MilvusClient
from servers import milvus_server
from warehouses import DEPLOY, script

from transforms.model import shared_text_model
from transforms.modelstore import DEMO_MODEL
from transforms.records import ModelSpec

load, search = script("milvus/load"), script("milvus/search")
QUERY = "a drawing of a cat"
EVERYTHING = 'id != ""'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with milvus_server(str(tmp_path / "milvus")) as url:
        yield url


def test_text_search_of_what_a_run_has_written(nightly, server, capsys):
    milvus = [f"--milvus={server}", "--collection=drawings"]
    (model,) = (path.name.removeprefix("model=") for path in (nightly / "embeddings").iterdir())
    tables = [f"--output={nightly}", f"--model_id={model}"]
    views = duckdb.connect()
    views.execute("SET VARIABLE output = ?", [str(nightly)])
    views.execute((DEPLOY / "duckdb" / "views.sql").read_text())
    latest = views.sql("SELECT uri, version, embedding, dt::VARCHAR FROM latest_embeddings")
    rows = latest.fetchall()
    assert len(rows) < len(views.sql("FROM all_embeddings").fetchall())

    # The last nights first: what is there already is not taken back by what is older.
    load.main([*tables, *milvus, "--since=2026-01-02"])
    assert stored(server) == {row[:2] for row in rows if row[3] >= "2026-01-02"}
    load.main([*tables, *milvus])
    assert stored(server) == {row[:2] for row in rows}
    # The same again is the same.
    load.main([*tables, *milvus, "--since=2026-01-01"])
    assert stored(server) == {row[:2] for row in rows}

    (vector,) = shared_text_model(ModelSpec(DEMO_MODEL)).encode_texts([QUERY])
    similarities = np.array([embedding for _, _, embedding, _ in rows]) @ vector
    wanted = [(rows[place][0], similarities[place]) for place in np.argsort(-similarities)[:5]]
    capsys.readouterr()
    search.main([QUERY, *milvus, "--limit=5"])
    lines = capsys.readouterr().out.splitlines()
    found = [line.split("  ", 1) for line in lines]
    assert [uri for _, uri in found] == [uri for uri, _ in wanted]
    told = [float(similarity) for similarity, _ in found]
    assert told == pytest.approx([similarity for _, similarity in wanted], abs=1e-4)
    assert [Path(uri).name for _, uri in found[:2]] == ["cat-2.webp", "cat-1.jpg"]


def stored(server: str) -> set[tuple[str, str]]:
    """What the collection has: the uri and version of every entity, each once."""
    client = MilvusClient(server)
    client.load_collection("drawings")
    entities = client.query("drawings", EVERYTHING, output_fields=["uri", "version"], limit=1000)
    client.close()
    found = {(entity["uri"], entity["version"]) for entity in entities}
    assert len(found) == len(entities)
    return found
