"""The command line: an error is one message and status 2, never a traceback."""

import subprocess
import sys

import pytest

from kser_tf import cli
from kser_tf.version import __version__


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"kser-tf {__version__}\n"


@pytest.mark.parametrize("verb", [verb.name for verb in cli.VERBS])
def test_every_flag_is_explained(verb, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([verb, "--help"])
    assert exit_.value.code == 0
    lines = capsys.readouterr().out.split("options:")[1].splitlines()
    flags = [i for i, line in enumerate(lines) if line.startswith("  --")]
    assert len(flags) > 3
    for start, end in zip(flags, [*flags[1:], len(lines)], strict=True):
        text = " ".join(lines[start:end]).split()
        assert len(text) > 3, f"{lines[start]} has no help"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--prepared", "nowhere", "--output", "out"], "nowhere: no such file or folder"),
        (["train", "--output", "out"], "command line: `prepared` is missing."),
        (
            ["train", "--prepared", "x", "--output", "y", "--epochs", "many"],
            "`epochs`: Input should be a valid integer",
        ),
        (["evaluate", "--model", "nowhere", "--prepared", "nowhere"], "nowhere: no such file or folder"),
        (["run", "nowhere.yaml"], "nowhere.yaml: no such file."),
        (["encode", "--config", "nowhere.yaml"], "nowhere.yaml: no such file."),
    ],
)
def test_errors_are_one_message(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == cli.EXIT_ERROR
    error = capsys.readouterr().err
    assert error.startswith("kser-tf: ")
    assert message in error
    assert list(tmp_path.iterdir()) == [], "an error leaves nothing behind"


def test_flags_win_over_the_file(tmp_path):
    import argparse

    from kser_tf.pipelines.config import add_flags, from_flags
    from kser_tf.pipelines.train import TrainConfig

    (tmp_path / "train.yaml").write_text("prepared: a\noutput: b\nepochs: 3\nmodel: {dropout: 0.5}\n")
    parser = argparse.ArgumentParser()
    add_flags(parser, TrainConfig)
    config = from_flags(TrainConfig, parser.parse_args(["--config", str(tmp_path / "train.yaml"), "--epochs", "7"]))
    assert (config.prepared, config.epochs, config.model.dropout) == ("a", 7, 0.5)


def test_the_command_starts_without_importing_tensorflow():
    code = "import sys; from kser_tf import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\nassert 'tensorflow' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
