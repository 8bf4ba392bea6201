"""Training with learned schedules from a config, in this process and as a program."""

import csv
import functools
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

import keras_fds
from configs import digits
from trainers import data, experiment, image_folder, search, train

pytestmark = pytest.mark.usefixtures("read_once")
ROOT = pathlib.Path(__file__).parents[2]
RESULTS = [
    "config.json",
    "history.csv",
    "model.keras",
    "schedules.json",
    "schedules.png",
    "tensorboard",
    "test.json",
]
SPAM = ("WARNING", "oneDNN", "cuda", "Traceback")
# Other numbers of buckets than the config's.
SCHEDULES = {
    "learning_rate": keras_fds.BucketedSchedule([0.05, 0.1, 0.02], 30),
    "momentum": keras_fds.BucketedSchedule([0.9, 0.5], 30),
    "weight_decay": keras_fds.BucketedSchedule([1e-4], 30),
}


@pytest.fixture(scope="module")
def schedules(tmp_path_factory):
    path = tmp_path_factory.mktemp("search") / "schedules.json"
    keras_fds.save_schedules(path, SCHEDULES)
    return path


@pytest.fixture
def config(digits_dir):
    return small_config(digits_dir)


def small_config(digits_dir):
    config = digits.get_config()
    config.update(network="mlp", train_epochs=2, train_seeds=2, data_dir=str(digits_dir))
    return config


@pytest.fixture(scope="module")
def program(tmp_path_factory, digits_dir, schedules, run_program):
    """The folder, what `train` returned, and the output of the program in this process."""
    workdir = tmp_path_factory.mktemp("runs") / "new"
    summaries = []

    def train_and_keep(*args, original=train.train, **kwargs):
        summaries.append(original(*args, **kwargs))
        return summaries[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "train", train_and_keep)
        code, output = run_program(
            main,
            f"--config={ROOT}/configs/digits.py",
            f"--schedules={schedules}",
            f"--workdir={workdir}",
            f"--config.data_dir={digits_dir}",
            "--config.network=mlp",
            "--config.train_epochs=2",
            "--config.train_seeds=2",
        )
    assert code == 0, output
    return workdir, summaries[0], output


@pytest.fixture(scope="module")
def trained(program):
    """The folder of a finished training, and what `train` returned."""
    return program[:2]


def main():
    experiment.run(train.main, required=train.REQUIRED)


def test_workdir_ends_up_with_everything(trained):
    workdir, metrics = trained
    assert sorted(path.name for path in workdir.iterdir()) == sorted([*RESULTS, "report.html"])
    assert json.loads((workdir / "test.json").read_text()) == metrics
    with open(workdir / "history.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "0", "1"]
    assert {path.name for path in (workdir / "tensorboard").iterdir()} == {"seed_0", "seed_1"}


def test_metrics_are_means_over_seeds(trained):
    _, metrics = trained
    assert [each["seed"] for each in metrics["seeds"]] == [0, 1]
    for name in ("loss", "accuracy"):
        assert metrics[name] == pytest.approx(np.mean([each[name] for each in metrics["seeds"]]))
    assert metrics["seeds"][0]["loss"] != metrics["seeds"][1]["loss"]
    low, high = metrics["accuracy_interval"]
    assert low < metrics["accuracy"] < high
    assert metrics["accuracy"] > 0.8


def test_schedules_are_the_files_stretched_to_the_training(trained):
    workdir, _ = trained
    horizon = 2 * 12  # 1438 examples in batches of 128.
    model = keras.models.load_model(workdir / "model.keras")
    assert int(model.optimizer.iterations.numpy()) == horizon
    written = keras_fds.load_schedules(workdir / "schedules.json")
    for name, schedule in SCHEDULES.items():
        for stretched in (written[name], model.optimizer.schedules[name]):
            assert stretched.values.tolist() == schedule.values.tolist()
            assert stretched.horizon == horizon


@pytest.mark.parametrize("factor", [1, 10])
def test_trains_over_several_times_the_learned_horizon(config, tmp_path, factor):
    epoch = 12  # 1438 examples in batches of 128.
    learned = {
        "learning_rate": keras_fds.BucketedSchedule([0.1, 0.2, 0.05], epoch),
        "momentum": keras_fds.BucketedSchedule([0.5], epoch),
        "weight_decay": keras_fds.BucketedSchedule([1e-4], epoch),
    }
    keras_fds.save_schedules(tmp_path / "schedules.json", learned)
    config.update(train_epochs=factor, train_seeds=1)
    metrics = train.train(config, tmp_path / "schedules.json", tmp_path / "run", verbose=0)
    model = keras.models.load_model(tmp_path / "run" / "model.keras")
    assert int(model.optimizer.iterations.numpy()) == epoch * factor
    rates = model.optimizer.schedules["learning_rate"].per_step()
    assert rates.tolist() == np.repeat([0.1, 0.2, 0.05], 4 * factor).tolist()
    assert metrics["accuracy"] > (0.6 if factor == 1 else 0.9)


def test_search_and_training_on_a_folder_of_images(tmp_path, run_program):
    for index in range(48):
        split, label = ("test" if index % 3 == 0 else "train"), "ab"[index % 2]
        path = tmp_path / "images" / split / label / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels // 2 + 100 * (index % 2)).save(path)
    fields = {
        "dataset": "image_folder",
        "data_dir": tmp_path / "images",
        "cache_dir": tmp_path / "cache",
        "network": "mlp",
        "augmentation": "crop_flip",
        "initializer": "he_normal",
        "batch_size": 8,
        "epochs": "(3,)",
        "outer_steps": 2,
        "validation_split": 0.25,
        "validation_batch_size": 4,
        "train_epochs": 2,
        "train_seeds": 1,
    }
    arguments = [f"--config={ROOT}/configs/digits.py"]
    arguments += [f"--config.{name}={value}" for name, value in fields.items()]
    schedules = tmp_path / "search" / "schedules.json"
    for program, required, flags in (
        (search.main, experiment.REQUIRED, [f"--workdir={tmp_path}/search"]),
        (train.main, train.REQUIRED, [f"--workdir={tmp_path}/run", f"--schedules={schedules}"]),
    ):
        code, output = run_program(
            functools.partial(experiment.run, program, required), *arguments, *flags
        )
        assert code == 0, output
        for word in SPAM:
            assert word not in output
    assert "Test accuracy" in output
    for folder in ("search", "run"):
        model = keras.models.load_model(tmp_path / folder / "model.keras")
        layer = model.layers[1]
        assert (layer.padding, layer.flip) == (4, True)
    images, _ = image_folder.read(tmp_path / "images", tmp_path / "cache")[0]["train"]
    black = -images.mean((0, 1, 2)) / images.std((0, 1, 2))
    np.testing.assert_allclose(layer.border, black, rtol=1e-5)


def test_model_is_the_first_seeds(trained, digits_dir):
    workdir, metrics = trained
    model = keras.models.load_model(workdir / "model.keras")
    test = data.load_arrays("digits", "test", digits_dir)
    loss, accuracy = model.evaluate(test.x, test.y, verbose=0)
    assert loss == pytest.approx(metrics["seeds"][0]["loss"], rel=1e-5)
    assert accuracy == pytest.approx(metrics["seeds"][0]["accuracy"])


def test_a_seed_is_repeated_exactly(trained, config, schedules, tmp_path):
    config.train_seeds = 1
    config.seed = 1
    again = train.train(config, schedules, tmp_path, verbose=0)
    assert again["accuracy_interval"] is None
    assert again["loss"] == pytest.approx(trained[1]["seeds"][1]["loss"], rel=1e-5)


def test_report_gives_mean_and_interval(trained):
    workdir, metrics = trained
    text = train.conclusion(metrics, workdir)
    assert f"Test accuracy {metrics['accuracy']:.2%}" in text
    assert "means of 2 seeds" in text and "95% interval" in text
    one = {"loss": 0.5, "accuracy": 0.9, "accuracy_interval": None, "seeds": [{}]}
    assert "Test accuracy 90.00%, loss 0.5000.\n" in train.conclusion(one, workdir)


def test_schedule_files_that_do_not_fit_are_refused(config, schedules, tmp_path):
    corrupt = tmp_path / "corrupt.json"
    corrupt.write_text("{")
    other = tmp_path / "other.json"
    keras_fds.save_schedules(other, {"learning_rate": SCHEDULES["learning_rate"]})
    workdir = tmp_path / "run"
    for path, message in (
        (tmp_path / "missing.json", "Cannot read the schedule file"),
        (corrupt, "is corrupt"),
        (other, "The schedules hold learning_rate, but the config learns learning_rate, momentum"),
    ):
        with pytest.raises(ValueError, match=message):
            train.train(config, path, workdir)
    assert not workdir.exists() or not list(workdir.iterdir())


def test_the_searchs_own_folder_is_refused(config, schedules):
    with pytest.raises(ValueError, match="must not be the folder that holds --schedules"):
        train.train(config, schedules, schedules.parent, overwrite=True)
    assert schedules.exists()


def test_program_prints_the_accuracy(program, schedules):
    workdir, _, output = program
    for word in SPAM:
        assert word not in output
    accuracy = json.loads((workdir / "test.json").read_text())["accuracy"]
    assert f"Test accuracy {accuracy:.2%}" in output
    page = (workdir / "report.html").read_text(encoding="utf-8")
    assert f"Test accuracy {accuracy:.2%}" in page and f"--schedules={schedules}" in page


def test_program_asks_for_what_it_needs():
    process = subprocess.run(
        [sys.executable, "-m", "trainers.train", "--config=configs/digits.py", "--workdir=run"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert process.returncode == 1
    assert "Flag --schedules must have a value other than None" in process.stdout
    for word in SPAM:
        assert word not in process.stdout
