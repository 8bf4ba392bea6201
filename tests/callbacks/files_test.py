"""What the callbacks write, asked of a real TensorBoard server and read from the files."""

import csv
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import keras
import numpy as np
import pytest
import tensorflow as tf
from matplotlib.figure import Figure

import keras_fds
from benchmarks import kills
from keras_fds import callbacks
from keras_fds.callbacks import tensorboard
from tests import numpy_mode

CONFIG = {"dataset": "two stripes", "epochs": (1, 2, 2)}
HORIZONS = [8, 16, 16]
BUCKETS = {"learning_rate": 3, "momentum": 1}


def make_model(optimizer=None):
    keras.utils.set_random_seed(0)
    model = numpy_mode.make_model(num_buckets=3, initial=0.0, metrics=["mae"])
    if optimizer:
        model.compile(optimizer, loss="mse")
    return model


def fit(model, extra_callbacks, outer_steps=3, **kwargs):
    x, y = numpy_mode.arrays()
    kwargs = {"batch_size": 6, "epochs": [1, 2, 2][:outer_steps], "verbose": 0, **kwargs}
    keras_fds.fit(
        model,
        x,
        y,
        outer_steps=outer_steps,
        validation_split=0.2,
        callbacks=extra_callbacks,
        differentiation=numpy_mode.NumpyMode(),
        **kwargs,
    )


class BreakOuterStep(keras.callbacks.Callback):
    """Makes the loss of one outer step, counted from 1, something that is not a number."""

    def __init__(self, outer_step):
        super().__init__()
        self.outer_step = outer_step

    def on_epoch_begin(self, epoch, logs=None):
        if epoch + 1 == self.outer_step:
            self.model.optimizer.coordinates = np.array([1e38, 1e38, 1e38, 0.0])


class Remember(keras.callbacks.Callback):
    """Keeps what the optimizer and the logs hold at the end of every outer step."""

    def __init__(self):
        super().__init__()
        self.logs = []
        self.schedules = []
        self.hypergradients = []

    def on_epoch_end(self, epoch, logs=None):
        self.logs.append(dict(logs))
        self.schedules.append(self.model.optimizer.schedules)
        self.hypergradients.append(self.model.optimizer.hypergradients)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A folder with the results of three outer steps, the second broken; what made them."""
    folder, seen = tmp_path_factory.mktemp("search"), Remember()
    board = callbacks.TensorBoard(folder / "logs", config=CONFIG)
    model, export = make_model(), callbacks.ScheduleExport(folder)
    with pytest.warns(RuntimeWarning, match="Outer step 2: the training loss stopped"):
        fit(model, [BreakOuterStep(2), board, export, seen])
    return folder, model, seen, export


@pytest.fixture(scope="module")
def server(searched):
    """The address of a TensorBoard server that has loaded the folder's logs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = str(searched[0] / "logs")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", logs]
    process = subprocess.Popen(
        [*command, "--host=127.0.0.1", f"--port={port}", "--load_fast=false"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}/data/plugin/"
    deadline = time.monotonic() + 60
    while not is_loaded(address):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.3)
    yield address
    process.kill()
    process.wait()


def is_loaded(address):
    try:
        tags = ask(address, "scalars/tags")
    except urllib.error.URLError:
        return False
    return len(tags) >= 6 and "epoch_loss" in tags.get("validation", {})


def ask(address, path, body=None, **query):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{address}{path}?{urllib.parse.urlencode(query)}",
        data=data,
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        content = answer.read()
    return content if "individual" in path else json.loads(content)


def points(address, run, tag):
    """`{step: value}` of a curve."""
    answer = ask(address, "scalars/scalars", run=run, tag=tag)
    return {step: float(value) for _, step, value in answer}


def test_every_outer_step_is_a_run_of_the_same_curves(server, searched):
    tags = ask(server, "scalars/tags")
    runs = sorted(run for run in tags if run.startswith("schedules/"))
    assert runs == [f"schedules/outer_step_00{n}" for n in (1, 2, 3)]
    for run in runs:
        assert set(tags[run]) == {"schedules/learning_rate", "schedules/momentum"}


@pytest.mark.parametrize("outer_step", [1, 2, 3])
def test_curves_have_points_at_either_end_of_every_bucket(server, searched, outer_step):
    schedules, horizon = searched[2].schedules[outer_step - 1], HORIZONS[outer_step - 1]
    for name in BUCKETS:
        curve = points(server, f"schedules/outer_step_00{outer_step}", f"schedules/{name}")
        values = schedules[name].per_step()
        assert curve == pytest.approx({step: values[step] for step in curve}, rel=1e-6)
        edges = {0: {0, 2, 3, 5, 6, 7}, 1: {0, 5, 6, 10, 11, 15}}[int(horizon == 16)]
        assert set(curve) == (edges if name == "learning_rate" else {0, horizon - 1})


@pytest.mark.parametrize(
    "name, bucket", [("learning_rate", 0), ("learning_rate", 2), ("momentum", 0)]
)
def test_buckets_over_outer_steps(server, searched, name, bucket):
    _, model, seen, _ = searched
    tag = f"{name}/bucket_{bucket}/"
    values = points(server, "search", tag + "value")
    expected = {n: each[name].values[bucket] for n, each in enumerate(seen.schedules, 1)}
    assert values == pytest.approx(expected, rel=1e-6)
    hypergradients = points(server, "search", tag + "hypergradient")
    expected = {n: each[name][bucket] for n, each in enumerate(seen.hypergradients, 1) if each}
    assert hypergradients == pytest.approx(expected, rel=1e-5)
    assert 2 not in hypergradients  # It broke down.
    records = model.optimizer.search.records
    for kind, end in (("one_deviation_below", 0), ("one_deviation_above", 1)):
        bands = {
            n: each.bands[end][name][bucket] for n, each in enumerate(records, 1) if each.bands
        }
        assert points(server, "search", tag + kind) == pytest.approx(bands, rel=1e-6) and bands


@pytest.mark.parametrize("metric", ["loss", "mae"])
def test_training_and_validation_overlay(server, searched, metric):
    logs = searched[2].logs
    for run, prefix in (("train", ""), ("validation", "val_")):
        expected = {
            n: log[prefix + metric] for n, log in enumerate(logs, 1) if prefix + metric in log
        }
        curve = points(server, run, f"epoch_{metric}")
        assert curve == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_pictures(server):
    tags = ask(server, "images/tags")
    assert list(tags["search"]) == ["schedules"]
    images = ask(server, "images/images", run="search", tag="schedules")
    assert [image["step"] for image in images] == [1, 2, 3]
    content = ask(server, "images/individualImage?" + images[-1]["query"] + "&")
    assert tf.io.decode_png(content).shape[-1] == 3


def test_configs_as_text(server):
    config = ask(server, "text/text", run="search", tag="config")[0]["text"]
    assert "two stripes" in config
    optimizer = ask(server, "text/text", run="search", tag="optimizer")[0]["text"]
    assert "BayesianOptimization" in optimizer and "num_buckets" in optimizer


def test_hparams_table(server, searched):
    ask(server, "hparams/experiment", {"experimentName": ""})
    request = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
        "colParams": [],
        "startIndex": 0,
        "sliceSize": 10,
    }
    groups = ask(server, "hparams/session_groups", request)["sessionGroups"]
    assert len(groups) == 1
    assert groups[0]["hparams"] == {
        "optimizer": "SGD",
        "outer": "BayesianOptimization",
        "learning_rate/initial": 0.0,
        "learning_rate/num_buckets": 3,
        "learning_rate/scale": "linear",
        "learning_rate/interpolation": "constant",
        "momentum/initial": 0.0,
        "momentum/num_buckets": 1,
        "momentum/scale": "linear",
        "momentum/interpolation": "constant",
    }
    with open(searched[0] / "history.csv", newline="") as file:
        best = [float(row["val_loss"]) for row in csv.DictReader(file) if row["best"] == "1"][-1]
    metrics = {each["name"]["tag"]: each["value"] for each in groups[0]["metricValues"]}
    assert metrics == {"best_val_loss": pytest.approx(best, rel=1e-6)}


def test_history_has_a_row_an_outer_step(searched):
    folder, _, seen, _ = searched
    with open(folder / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["outer_step"] for row in rows] == ["1", "2", "3"]
    assert [int(row["horizon"]) for row in rows] == HORIZONS
    for row, logs, schedules, hypergradients in zip(
        rows, seen.logs, seen.schedules, seen.hypergradients
    ):
        for name, value in logs.items():
            assert float(row[name]) == pytest.approx(value, nan_ok=True)
        for name, number in BUCKETS.items():
            for k in range(number):
                assert float(row[f"{name}[{k}]"]) == schedules[name].values[k]
                cell = row[f"hypergradient/{name}[{k}]"]
                assert cell == (str(hypergradients[name][k]) if hypergradients else "")
    assert rows[1]["val_loss"] == "nan"
    assert list(rows[0])[-12:] == [
        f"{kind}/{name}[{k}]"
        for kind in ("hypergradient", "below", "above")
        for name, number in BUCKETS.items()
        for k in range(number)
    ]


def test_schedules_of_the_best_outer_step(searched):
    folder, model, seen, _ = searched
    # The first to be finite over the last horizon; over another one, losses say nothing.
    assert HORIZONS[1:] == HORIZONS[-1:] * 2
    best = seen.schedules[2]
    loaded = keras_fds.load_schedules(folder / "schedules.json")
    for name, schedule in loaded.items():
        np.testing.assert_array_equal(schedule.values, best[name].values)
        np.testing.assert_array_equal(schedule.values, model.optimizer.schedules[name].values)
        assert schedule.horizon == best[name].horizon
    assert tf.io.decode_png((folder / "schedules.png").read_bytes()).shape[0] > 100


def test_a_first_outer_step_replaces_the_history_and_may_have_no_schedules(tmp_path):
    (tmp_path / "history.csv").write_text("outer_step\n1\n2\n3\n")
    with pytest.warns(RuntimeWarning):
        fit(make_model(), [BreakOuterStep(1), callbacks.ScheduleExport(tmp_path)], outer_steps=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.csv", "schedules.png"]
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 2


class Interrupt(keras.callbacks.Callback):
    """Interrupts a search in an outer step, counted from 1, or when all callbacks ended it."""

    def __init__(self, outer_step, at_its_end):
        super().__init__()
        self.outer_step, self.at_its_end = outer_step, at_its_end

    def on_epoch_begin(self, epoch, logs=None):
        if epoch + 1 == self.outer_step and not self.at_its_end:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == self.outer_step and self.at_its_end:
            raise KeyboardInterrupt


@pytest.mark.parametrize("order", [1, -1], ids=["checkpoint first", "checkpoint last"])
def test_what_is_shown_of_an_interrupted_search_is_what_is_shown_of_another(tmp_path, order):
    def search(folder, *more):
        keeping = [
            callbacks.Checkpoint(folder / "checkpoints"),
            callbacks.ScheduleExport(folder),
            callbacks.TensorBoard(folder / "logs"),
        ]
        fit(make_model(), [*keeping[::order], *more], seed=3)

    search(tmp_path / "whole")
    for outer_step, at_its_end in ((2, False), (2, True), (3, False)):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / "parts", Interrupt(outer_step, at_its_end))
    search(tmp_path / "parts")
    for name in ("history.csv", "schedules.json", "schedules.png"):
        whole, parts = ((tmp_path / kind / name).read_bytes() for kind in ("whole", "parts"))
        assert whole == parts, name
    whole, parts = (kills.curves(tmp_path / kind / "logs") for kind in ("whole", "parts"))
    assert parts == whole and len(whole) > 20
    assert [step for step, _ in parts["train epoch_loss"]] == [1, 2, 3]


def test_only_own_event_files_are_replaced(tmp_path):
    mine, other = tmp_path / "train", tmp_path / "other" / "train"
    for folder, ending in ((mine, ".v2"), (mine, ".keras_fds"), (other, ".keras_fds")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"events.out.tfevents.1.host{ending}").touch()
    fit(make_model(), [callbacks.TensorBoard(tmp_path)], outer_steps=1)
    assert (mine / "events.out.tfevents.1.host.v2").exists()
    assert not (mine / "events.out.tfevents.1.host.keras_fds").exists()
    assert len(list(mine.iterdir())) == 2
    assert (other / "events.out.tfevents.1.host.keras_fds").exists()


@pytest.mark.parametrize("kind", ["ScheduleExport", "TensorBoard"])
def test_results_that_cannot_be_written_are_told_and_the_search_goes_on(
    tmp_path, kind, monkeypatch
):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    callback = getattr(callbacks, kind)(tmp_path)
    monkeypatch.setattr(callback, "_write" if kind == "ScheduleExport" else "_show", full)
    seen = Remember()
    with pytest.warns(RuntimeWarning, match="could not be written to.*No space left on device"):
        fit(make_model(), [callback, seen])
    assert len(seen.logs) == 3
    assert not list(tmp_path.glob("*.partial*"))


def test_an_interrupted_write_leaves_the_older_files(searched, monkeypatch):
    folder, export = searched[0], searched[3]
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def interrupted(self, path, **kwargs):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export._write(export.model.optimizer.search.records)
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert after == before


@pytest.mark.parametrize("make", [callbacks.TensorBoard, callbacks.ScheduleExport])
def test_other_optimizers_are_refused(tmp_path, make):
    with pytest.raises(ValueError, match=f"{make.__name__} shows learned schedules"):
        make_model("sgd").fit(*numpy_mode.arrays(), callbacks=[make(tmp_path)], verbose=0)
    with pytest.raises(ValueError, match=f"{make.__name__} is for keras_fds.fit"):
        make_model().fit(*numpy_mode.arrays(), callbacks=[make(tmp_path)], verbose=0)


@pytest.mark.parametrize("make", [callbacks.TensorBoard, callbacks.ScheduleExport])
def test_directories_that_cannot_be_made_are_refused(tmp_path, make):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="can be made and written to: Not a directory"):
        fit(make_model(), [make(tmp_path / "file" / "logs")])


def test_long_curves_are_thinned(tmp_path):
    values = np.arange(1000.0)
    schedules = {"learning_rate": keras_fds.BucketedSchedule(values, horizon=1000)}
    writer = tf.summary.create_file_writer(str(tmp_path))
    with writer.as_default():
        tensorboard._write_curves(schedules, {"learning_rate": [""]})
    writer.close()
    events = tf.compat.v1.train.summary_iterator(str(next(tmp_path.iterdir())))
    steps = [event.step for event in events if event.summary.value]
    assert len(steps) == 400 and steps[0] == 0 and steps[-1] == 999


def test_the_picture_may_be_drawn_once_at_the_end(tmp_path):
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(sorted(p.name for p in tmp_path.iterdir()))
    )
    fit(make_model(), [callbacks.ScheduleExport(tmp_path, every_picture=False), watch])
    assert seen == [["history.csv", "schedules.json"]] * 3
    assert (tmp_path / "schedules.png").exists()
