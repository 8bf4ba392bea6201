"""Tests of trainers/prepare_data.py, as a function and as a program, and of its quiet import."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from absl import app
from PIL import Image

from trainers import prepare_data, quiet_tensorflow


def main():
    app.run(prepare_data.main)


def test_describes_the_prepared_dataset(tmp_path):
    line = prepare_data.prepare_data("digits", tmp_path)
    folder = tmp_path / "digits" / "1.0.0"
    assert line == f"digits is ready: train 1438, test 359 examples in {folder}"
    assert prepare_data.prepare_data("digits", tmp_path) == line


def test_describes_files_of_your_own(tmp_path):
    y = np.arange(6) % 3
    np.savez(tmp_path / "all.npz", train_x=np.ones((6, 4, 4, 1)), train_y=y)
    line = prepare_data.prepare_data("numpy", tmp_path / "all.npz")
    assert line == f"numpy is ready: train 6 examples, 3 classes in {tmp_path / 'all.npz'}"


def test_program_decodes_a_folder_into_a_cache(tmp_path, run_program):
    for split, label in (("test", "a"), ("test", "b"), ("train", "a"), ("train", "b")):
        (tmp_path / "images" / split / label).mkdir(parents=True)
        image = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
        image.save(tmp_path / "images" / split / label / "0.png")
    arguments = [f"--data_dir={tmp_path}/images", f"--cache_dir={tmp_path}/cache"]
    code, output = run_program(main, "--dataset=image_folder", *arguments)
    expected = f"is ready: train 2, test 2 examples, 2 classes in {tmp_path}/images\n"
    assert (code, output) == (0, f"image_folder {expected}")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    (tmp_path / "images" / "train" / "a" / "0.png").write_text("text")
    code, output = run_program(main, "--dataset=image_folder", *arguments)
    assert code == 1 and output.startswith("prepare_data: 1 image cannot be read in ")
    assert output.count("\n") == 1


def test_raises_for_an_unknown_dataset(tmp_path):
    with pytest.raises(ValueError, match="Received: dataset=unknown"):
        prepare_data.prepare_data("unknown", tmp_path)


def test_program_prints_one_line(tmp_path, run_program):
    code, output = run_program(main, "--dataset=digits", f"--data_dir={tmp_path}")
    assert code == 0
    assert output.startswith("digits is ready: train 1438, test 359 examples in ")
    assert output.count("\n") == 1


def test_program_says_in_one_line_what_is_wrong(tmp_path, run_program):
    folder = tmp_path / "nowhere"
    code, output = run_program(
        main, "--dataset=mnist", f"--data_dir={tmp_path}", f"--manual_dir={folder}"
    )
    assert code == 1
    expected = (
        f"prepare_data: The folder `manual_dir` does not exist. Received: manual_dir={folder}\n"
    )
    assert output == expected


def test_program_refuses_other_arguments():
    process = subprocess.run(
        [sys.executable, "-m", "trainers.prepare_data", "fashion_mnist"],
        cwd=pathlib.Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1
    assert "Unexpected arguments: fashion_mnist" in process.stdout + process.stderr


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("0", "0")])
def test_tensorflow_computes_with_onednn_unless_told_otherwise(monkeypatch, given, expected):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", given or "")
    if given is None:
        monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    quiet_tensorflow.import_tensorflow_quietly()
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == expected
