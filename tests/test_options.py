from __future__ import annotations

import subprocess
import sys

import pytest

from pipelines import cli, tag
from pipelines.options import UsageError, parse_tag


@pytest.fixture
def arguments(labels, tmp_path):
    return [f"--input={tmp_path}", f"--labels={labels}", f"--output={tmp_path / 'out'}"]


def test_defaults(arguments, tmp_path):
    spec = parse_tag(arguments)
    assert spec.model.name == "demo"
    assert spec.is_local
    assert spec.run.output == str(tmp_path / "out")
    assert spec.label_sets[0].name == "things"


def test_options_of_beam_pass_through(arguments):
    spec = parse_tag([*arguments, "--runner=FlinkRunner", "--flink_version=1.19", "--project", "p"])
    assert not spec.is_local
    assert spec.beam_args == ("--flink_version=1.19", "--project", "p")


def test_the_command_line_overrides_the_label_file(arguments):
    spec = parse_tag([*arguments, "--top_k=1", "--threshold=0.5"])
    assert (spec.label_sets[0].top_k, spec.label_sets[0].threshold) == (1, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--batch_size=0"], "--batch_size: '0' is not a whole number from 1"),
        (["--precision=int8", "--device=cuda"], "--precision=int8 is for processors; a GPU has"),
        (["--shard_size=many"], "--shard_size: 'many' is not a whole number from 1"),
        (["--run_date=yesterday"], "--run_date: 'yesterday' is not a date like 2026-01-31"),
        (["--background=blue"], "--background: 'blue' is not a colour like ffffff"),
        (["--device=tpu"], "--device: invalid choice: 'tpu'"),
        (["--decode=best"], "--decode: invalid choice: 'best'"),
        (["--decode=gpu", "--device=cpu"], "--decode=gpu decodes where the model is"),
        (["--threshold=1.5"], "softmax gives 0 to 1"),
        (["--threshold=nan"], "softmax gives 0 to 1"),
        (["photos"], "unexpected argument 'photos'"),
        (["--labels=nowhere.yaml"], "no label file nowhere.yaml, and no built-in label set"),
        (["--labels=everyday", "--labels=everyday"], "'everyday' is given twice"),
        (["--labels=."], "cannot read ."),
        (["--include=**.jpg"], "--include: Invalid pattern: '**'"),
        (["--exclude=**thumb**"], "--exclude: Invalid pattern: '**'"),
        (["--exclude="], "--exclude: is empty"),
        (["--input=gs://"], "--input: 'gs://' names nothing after ://"),
        (["--output=s3:///"], "--output: 's3:///' names nothing after ://"),
        (["--output=https://example.com/out"], "--output: nothing can be written to http://"),
    ],
)
def test_a_usage_error_is_one_line_and_status_2(arguments, changes, message, capsys):
    assert tag.main([*arguments, *changes]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("beamtag tag: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err


def test_every_mistake_of_a_label_file_is_a_line(arguments, labels, capsys):
    labels.write_text("name: a b\nlabels: [dog, dog]\n")
    assert tag.main(arguments) == 2
    assert capsys.readouterr().err.count(f"beamtag tag: error: {labels}:") == 2


def test_a_label_file_that_is_not_text(arguments, labels):
    labels.write_bytes(b"name: \xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8 text: byte 6 is not"):
        parse_tag(arguments)


def test_missing_options_are_named(capsys):
    assert tag.main([]) == 2
    assert "--input, --labels, --output" in capsys.readouterr().err


def test_the_command_knows_its_jobs(capsys):
    assert cli.main(["--help"]) == 0
    assert "tag" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("beamtag ")
    assert cli.main(["tga"]) == 2
    assert "no job is called 'tga'" in capsys.readouterr().err
    assert cli.main([]) == 2


@pytest.mark.parametrize("arguments", [["--help"], ["tag", "--help"]])
def test_help_imports_neither_torch_nor_beam(arguments):
    program = (
        "import sys, contextlib\n"
        "from pipelines.cli import main\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main(sys.argv[1:])\n"
        "slow = {'torch', 'open_clip', 'apache_beam', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(f'imported {slow}' if slow else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage: beamtag" in done.stdout
