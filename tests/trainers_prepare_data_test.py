"""Tests of trainers/prepare_data.py: as a function, and as users run it."""

import os
import pathlib
import subprocess
import sys

import pytest

from trainers import prepare_data


def run_program(*arguments):
    """Runs the program in a process of its own, as from a terminal of a user with no settings."""
    environment = {key: value for key, value in os.environ.items() if key[:7] != "TF_CPP_"}
    return subprocess.run(
        [sys.executable, "-m", "trainers.prepare_data", *arguments],
        cwd=pathlib.Path(__file__).resolve().parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_describes_the_prepared_dataset(tmp_path):
    line = prepare_data.prepare_data("digits", tmp_path)
    folder = tmp_path / "digits" / "1.0.0"
    assert line == f"digits is ready: train 1438, test 359 examples in {folder}"
    assert prepare_data.prepare_data("digits", tmp_path) == line


def test_raises_for_an_unknown_dataset(tmp_path):
    with pytest.raises(ValueError, match="Received: dataset=unknown"):
        prepare_data.prepare_data("unknown", tmp_path)


def test_program_prints_one_line(tmp_path):
    program = run_program("--dataset=digits", f"--data_dir={tmp_path}")
    assert program.returncode == 0
    assert program.stdout.startswith("digits is ready: train 1438, test 359 examples in ")
    assert program.stdout.count("\n") == 1
    assert program.stderr == ""


def test_program_says_in_one_line_what_is_wrong(tmp_path):
    folder = tmp_path / "nowhere"
    program = run_program("--dataset=mnist", f"--data_dir={tmp_path}", f"--manual_dir={folder}")
    assert program.returncode == 1
    assert program.stdout == ""
    expected = f"prepare_data: The folder manual_dir does not exist. Received: {folder}\n"
    assert program.stderr == expected


def test_program_refuses_other_arguments():
    program = run_program("fashion_mnist")
    assert program.returncode == 1
    assert "Unexpected arguments: fashion_mnist" in program.stdout + program.stderr


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("0", "0")])
def test_tensorflow_computes_with_onednn_unless_told_otherwise(monkeypatch, given, expected):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", given or "")
    if given is None:
        monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    prepare_data.import_tensorflow_quietly()
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == expected
