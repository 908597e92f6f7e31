"""`--config`: options from a file, the command line over them, every mistake with its line."""

from __future__ import annotations

import fsspec
import pytest

from pipelines import rescore, tag, verify
from pipelines.config import COMMAND_LINE, DEFAULT
from pipelines.options import parse_tag


@pytest.fixture
def config(tmp_path, labels):
    """Writes a file of the options that every job needs, and of these."""

    def write(text: str) -> str:
        path = tmp_path / "job.yaml"
        needed = {"input": tmp_path, "labels": labels, "output": tmp_path / "out"}
        lines = [f"{name}: {value}\n" for name, value in needed.items() if f"{name}:" not in text]
        path.write_text(text + "".join(lines))
        return f"--config={path}"

    return write


def where(spec, name):
    [told] = [told for told in spec.told if told.name == name]
    return told.where


def test_options_come_from_the_file(config, tmp_path):
    spec = parse_tag(
        [
            config(
                "input: [/b, /a]\n"
                "shard_size: 16\n"
                "text_weight: .25\n"
                "carry: [asset, owner]\n"
                "extensions: jpg,PNG\n"
                "background: '102030'\n"
                "max_failures: 1%\n"
                "prune: true\n"
                "quiet: false\n"
            )
        ]
    )
    assert [given.url for given in spec.inputs] == ["/b", "/a"]
    assert (spec.shard_size, spec.text_weight, spec.run.carry) == (16, 0.25, ("asset", "owner"))
    assert (spec.selection.extensions, spec.background) == ((".jpg", ".png"), (16, 32, 48))
    assert spec.max_failures is not None
    assert spec.max_failures.share == 0.01
    assert (spec.prune, spec.quiet) == (True, False)
    assert where(spec, "shard_size") == f"{tmp_path}/job.yaml:2"
    assert where(spec, "batch_size") == DEFAULT


def test_the_command_line_wins(config):
    text = "input: [/a, /b]\nshard_size: 16\nprune: true\nregion: here\nmachine_type: small\n"
    spec = parse_tag(
        [
            "--input=/c",
            "--shard_size=4",
            config(text),
            "--prune=false",
            "--region=there",
            "--worker_machine_type=big",
        ]
    )
    assert [given.url for given in spec.inputs] == ["/c"]
    assert (spec.shard_size, spec.prune) == (4, False)
    # By its other name, too.
    assert spec.beam_args == ("--region=there", "--worker_machine_type=big")
    assert where(spec, "shard_size") == where(spec, "region") == COMMAND_LINE


def test_words_stay_words(config):
    spec = parse_tag([config("project: no\ncarry: [yes, 1, off]\nrun_date: 2026-01-31\n")])
    assert spec.beam_args == ("--project=no",)
    assert spec.run.carry == ("yes", "1", "off")
    assert spec.run.run_date == "2026-01-31"


def test_options_of_beam(config):
    spec = parse_tag(
        [
            config(
                "runner: DataflowRunner\n"
                "detach: true\n"
                "region: europe-west4\n"
                "max_num_workers: 20\n"
                "experiments: [one, two]\n"
                "no_use_public_ips: true\n"
                "save_main_session: false\n"
            )
        ]
    )
    assert spec.detach
    assert spec.beam_args == (
        "--region=europe-west4", "--max_num_workers=20", "--experiments=one", "--experiments=two",
        "--no_use_public_ips",
    )  # fmt: skip


def test_arguments_of_stores_are_a_map(config):
    text = "storage_options:\n  s3:\n    endpoint_url: 'https://x'\n    anon: true\n    key: no\n"
    spec = parse_tag([config(text)])
    assert spec.storage_options == {"s3": {"endpoint_url": "https://x", "anon": True, "key": "no"}}


MISTAKES = {
    "inptu: /a": (1, "unknown option 'inptu'; did you mean 'input'?"),
    "config: other.yaml": (1, "unknown option 'config'"),
    "regoin: x": (1, "unknown option 'regoin'; did you mean 'region'?"),
    "quite: true": (1, "unknown option 'quite'; did you mean 'quiet'?"),
    "zzqqjj: x": (1, "unknown option 'zzqqjj'; see beamtag tag --help"),
    "\nbatch_size: 0": (2, "batch_size: '0' is not a whole number from 1"),
    "include:\n  - '*.jpg'\n  - '**.jpg'": (3, "include: Invalid pattern: '**'"),
    "device: tpu": (1, "device: invalid choice: 'tpu'"),
    "prune: yes": (1, "prune must be true or false, not 'yes'"),
    "top_k: [1, 2]": (1, "top_k takes one value, not a list"),
    "top_k: {a: 1}": (1, "top_k is no map of options"),
    "input: []": (1, "input is an empty list"),
    "pretrained:": (1, "pretrained is empty"),
    "top_k: 1\ntop_k: 2": (2, "the key 'top_k' stands on line 1 already"),
    "max_num_workers: many": (1, "max_num_workers: invalid int value: 'many'"),
    "storage_options: [s3]": (1, "storage_options takes one value, not a list"),
    "storage_options: {s3: 1}": (1, "storage_options: is not a map of stores to arguments"),
    "\ttop_k: 1": (1, "not YAML: a tab stands where only spaces may"),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_told_with_its_line(config, tmp_path, capsys, text):
    line, message = MISTAKES[text]
    assert tag.main([config(f"{text}\n")]) == 2
    [told] = capsys.readouterr().err.splitlines()
    assert told.startswith(f"beamtag tag: error: {tmp_path}/job.yaml:{line}: ")
    assert message in told


def test_every_mistake_is_told(config, capsys):
    assert tag.main([config("inptu: a\nbatch_size: 0\nprune: 1\n")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.split("job.yaml:")[1][0] for line in told] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "job.yaml:1: the file is empty; it needs options, as name: value"),
        (b"- input\n", "job.yaml:1: a config file is a map of options to values"),
        (b"input: \xff\n", "job.yaml:1: not UTF-8 text"),
        (None, "no config file"),
    ],
)
def test_a_file_that_is_none(tmp_path, capsys, content, message):
    path = tmp_path / "job.yaml"
    if content is not None:
        path.write_bytes(content)
    assert tag.main([f"--config={path}"]) == 2
    [told] = capsys.readouterr().err.splitlines()
    assert message in told
    assert "label" not in told


def test_a_remote_file(config, tmp_path, labels):
    with fsspec.open("memory://configs/job.yaml", "w") as file:
        file.write(f"input: {tmp_path}\nlabels: {labels}\noutput: {tmp_path}\ntop_k: 3\n")
    spec = parse_tag(["--config=memory://configs/job.yaml"])
    assert where(spec, "top_k") == "memory://configs/job.yaml:4"


def test_a_job_is_run_by_its_file(config, vit, tmp_path):
    assert tag.main([config(f"model: local-dir:{vit}\nquiet: true\n")]) == 0
    assert list((tmp_path / "out").glob("runs/*.json"))


def test_the_other_jobs_take_it_too(tmp_path, labels, capsys):
    path = tmp_path / "job.yaml"
    path.write_text(f"output: {tmp_path / 'none'}\nlabels: {labels}\nagian: true\n")
    assert rescore.main([f"--config={path}"]) == 2
    assert "job.yaml:3: unknown option 'agian'; did you mean 'again'?" in capsys.readouterr().err
    # It takes no options of Beam.
    path.write_text(f"output: {tmp_path / 'none'}\nregion: here\n")
    assert verify.main([f"--config={path}"]) == 2
    assert "job.yaml:2: unknown option 'region'" in capsys.readouterr().err


def test_a_switch_may_be_told_its_value(labels, tmp_path):
    needed = [f"--input={tmp_path}", f"--labels={labels}", f"--output={tmp_path}"]
    assert parse_tag([*needed, "--prune=true"]).prune
    assert not parse_tag([*needed, "--prune=false"]).prune
