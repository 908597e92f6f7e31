"""`--explain`: the resolved job, its graph and its files, and nothing is run or written."""

from __future__ import annotations

import json

import pytest
from conftest import write_pictures

from pipelines import rescore, tag


@pytest.fixture
def archive(tmp_path):
    return write_pictures(tmp_path / "archive", 3)


@pytest.fixture
def explained(archive, labels, vit, capsys):
    """What `--explain --json` says of a job."""

    def explain(*more: str):
        capsys.readouterr()
        assert tag.main([f"--input={archive}", f"--labels={labels}", f"--model=local-dir:{vit}",
                         "--explain", "--json", *more]) == 0  # fmt: skip
        return json.loads(capsys.readouterr().out)

    return explain


def flat(steps):
    for step in steps:
        yield step
        yield from flat(step["steps"])


def test_where_each_option_comes_from(explained, tmp_path):
    config = tmp_path / "job.yaml"
    config.write_text("output: /nowhere/at/all\nshard_size: 8\n")
    told = explained(f"--config={config}", "--top_k=1", "--num_workers=3")
    options = {option["name"]: option for option in told["options"]}
    assert options["shard_size"] == {
        "name": "shard_size", "values": ["8"], "from": f"{config}:2",
    }  # fmt: skip
    assert options["top_k"]["from"] == options["num_workers"]["from"] == "command line"
    assert (options["max_chars"]["values"], options["max_chars"]["from"]) == (["100000"], "default")


def test_what_it_would_do(explained, archive):
    told = explained("--output=/nowhere/at/all", "--run_date=2026-01-31")
    assert told["inputs"] == [{"url": str(archive), "kind": "media"}]
    [(label_set_id, label_set)] = told["label_sets"].items()
    assert (label_set["labels"], label_set["top_k"]) == (5, 2)
    model = told["model_id"]
    assert told["writes"][:3] == [
        f"/nowhere/at/all/embeddings/model={model}/dt=2026-01-31/shard-*.parquet",
        "/nowhere/at/all/failures/dt=2026-01-31/shard-*.parquet",
        f"/nowhere/at/all/predictions/label_set={label_set_id}/model={model}/dt=2026-01-31/shard-*.parquet",
    ]


def test_the_graph(explained):
    told = explained("--output=/nowhere/at/all")
    steps = {step["name"]: step for step in flat(told["graph"])}
    assert steps["ShuffleShards"]["shuffles"]
    assert not steps["ReadMedia"]["shuffles"]
    assert steps["WriteShards/GroupParts"]["shuffles"]
    [fused] = told["pixels_in"]
    for name in ("ReadMedia", "EmbedMedia", "ScoreLabels", "WriteShards/WriteFiles"):
        assert steps[name]["passes"] == [fused]
    # Beam's own parts are not shown.
    assert steps["Inputs"]["steps"] == []


def test_a_job_elsewhere_has_another_graph(explained):
    told = explained("--output=/nowhere/at/all", "--runner=DataflowRunner", "--device=cuda")
    assert "JoinDone" in {step["label"] for step in told["graph"]}


def test_nothing_is_written_and_no_secret_told(explained, tmp_path):
    output = tmp_path / "out"
    told = explained(f"--output={output}", '--storage_options={"s3": {"secret": "hush"}}')
    assert "hush" not in json.dumps(told)
    assert not output.exists()


def test_for_a_person(archive, labels, vit, capsys):
    assert tag.main([f"--input={archive}", f"--labels={labels}", f"--model=local-dir:{vit}",
                     "--output=/nowhere/at/all", "--explain"]) == 0  # fmt: skip
    said = capsys.readouterr().out
    for part in (f"input      {archive} (media)", "5 labels, softmax, top 2", "ShuffleShards",
                 "/nowhere/at/all/runs/", "Nothing was run."):  # fmt: skip
        assert part in said


def test_rescore(job, archive, labels, vit, capfd, tmp_path):
    assert job(input=archive).status == 0
    before = sorted(tmp_path.rglob("*"))
    assert rescore.main([f"--output={tmp_path / 'out'}", f"--labels={labels}", "--again",
                         f"--model=local-dir:{vit}", "--explain", "--json"]) == 0  # fmt: skip
    told = json.loads(capfd.readouterr().out)
    assert told["pixels_in"] == []
    assert [step["label"] for step in told["graph"]][-1] == "WriteRunRecord"
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_wrong_is_wrong_here_too(archive, labels, capsys):
    assert tag.main([f"--input={archive}/gone", f"--labels={labels}", "--output=/nowhere",
                     "--explain"]) == 2  # fmt: skip
    assert "does not exist" in capsys.readouterr().err
