"""Callbacks that show and keep what `keras_fds.fit` learns, and the picture they share.

Outer steps count from 1 here, as in Keras's progress bar.
"""

import contextlib
import csv
import json
import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorboard.plugins.hparams import api as hparams

from keras_fds.hyper_optimizer import HyperOptimizer
from keras_fds.schedules import BucketedSchedule, save_schedules

# TensorBoard keeps every point of a curve of this length.
_MOST_POINTS = 400


class TensorBoard(keras.callbacks.Callback):
    """Shows a search in TensorBoard; for `keras_fds.fit`.

    Every outer step writes, and flushes:

    - `schedules/learning_rate`, …: each schedule as a curve over inner steps, with a point at
      either end of every bucket. Every outer step is a run of its own,
      `schedules/outer_step_001`, …, so that TensorBoard overlays them.
    - `learning_rate/bucket_0/value`, `…/hypergradient`, `…/step_size` and `best_val_loss` over
      outer steps, and a picture of all schedules so far: run `search`.
    - `epoch_loss` and the metrics over outer steps: runs `train` and `validation`.

    The beginning writes the optimizer's configuration and `config` as text, and an entry of the
    HParams table: the start values, to be compared by the best validation loss.

    Args:
        log_dir: Folder for the event files; made when it does not exist. Defaults to `"logs"`.
        config: A description of the experiment, a string (Markdown) or a dictionary. Defaults
            to `None`, no description.

    Raises:
        ValueError: At the beginning of training, when `log_dir` cannot be written to or the
            model's optimizer is no `HyperOptimizer`.

    Example:

    >>> board = keras_fds.callbacks.TensorBoard("logs")
    >>> keras_fds.fit(model, x, y, validation_split=0.05, callbacks=[board])

    Then type `tensorboard --logdir logs`.
    """

    def __init__(self, log_dir="logs", config=None):
        super().__init__()
        self.log_dir = pathlib.Path(log_dir)
        self.config = config
        self._writers = {}

    def on_train_begin(self, logs=None):
        optimizer = _hyper_optimizer(self)
        _writable_directory(self.log_dir, "log_dir")
        self._schedules, self._outer_steps = [], []
        self._best = np.inf
        start_values = _flat_start_values(optimizer)
        with self._run("."):
            hparams.hparams_config(
                hparams=[hparams.HParam(name) for name in start_values],
                metrics=[hparams.Metric("best_val_loss", display_name="best validation loss")],
            )
        with self._run("search"):
            hparams.hparams(start_values)
            tf.summary.text("optimizer", _as_markdown(optimizer.get_config()), step=0)
            if self.config is not None:
                tf.summary.text("config", _as_markdown(self.config), step=0)

    def on_epoch_end(self, epoch, logs=None):
        logs, outer_step = logs or {}, epoch + 1
        schedules = self.model.optimizer.schedules
        self._schedules.append(schedules)
        self._outer_steps.append(outer_step)
        run = f"schedules/outer_step_{outer_step:03d}"
        with self._run(run):
            _write_curves(schedules)
        self._writers.pop(run).close()
        self._best = min(self._best, np.nan_to_num(logs.get("val_loss", np.inf), nan=np.inf))
        with self._run("search"):
            _write_buckets(self.model.optimizer, outer_step)
            if np.isfinite(self._best):
                tf.summary.scalar("best_val_loss", self._best, step=outer_step)
            picture = _pixels(draw_schedules(self._schedules, self._outer_steps))
            tf.summary.image("schedules", picture[np.newaxis], step=outer_step)
        for run, prefix in (("train", ""), ("validation", "val_")):
            with self._run(run):
                for name, value in logs.items():
                    if name.startswith("val_") == bool(prefix):
                        tag = f"epoch_{name.removeprefix(prefix)}"
                        tf.summary.scalar(tag, value, step=outer_step)

    def on_train_end(self, logs=None):
        while self._writers:
            self._writers.popitem()[1].close()

    @contextlib.contextmanager
    def _run(self, name):
        """Where `tf.summary` writes to the run of that name; flushed at the end."""
        if name not in self._writers:
            self._writers[name] = tf.summary.create_file_writer(str(self.log_dir / name))
        with self._writers[name].as_default():
            yield
        self._writers[name].flush()


class ScheduleExport(keras.callbacks.Callback):
    """Keeps a search's results in a directory; for `keras_fds.fit`.

    After each outer step it writes

    - `schedules.json`: the schedules of the best outer step so far by validation loss, for
      `keras_fds.load_schedules`; not there until an outer step had a finite one;
    - `history.csv`: a row an outer step: `outer_step`, `horizon`, losses and metrics, then the
      value of every bucket (`learning_rate[0]`, …) and its hypergradient
      (`hypergradient/learning_rate[0]`, …); what is not a number is written as it is;
    - `schedules.png`: a picture of all schedules so far.

    Each replaces its older version in one move, so an interrupt leaves no half file. A `fit`
    that starts at a later outer step (`initial_epoch`, or Keras's `BackupAndRestore`) continues
    the `history.csv` it finds; one that starts at the first replaces it.

    Args:
        directory: Made when it does not exist.

    Raises:
        ValueError: When `directory` cannot be written to; at the beginning of training, when the
            model's optimizer is no `HyperOptimizer`; before the first outer step, when it should
            continue a `history.csv` that is of another search.

    Example:

    >>> export = keras_fds.callbacks.ScheduleExport("run")
    >>> keras_fds.fit(model, x, y, validation_split=0.05, callbacks=[export])
    >>> keras_fds.load_schedules("run/schedules.json")
    """

    def __init__(self, directory):
        super().__init__()
        self.directory = _writable_directory(directory, "directory")

    def on_train_begin(self, logs=None):
        _hyper_optimizer(self)
        self._rows = None

    def on_epoch_begin(self, epoch, logs=None):
        if self._rows is None:
            self._rows = self._read_rows(epoch)

    def on_epoch_end(self, epoch, logs=None):
        optimizer = self.model.optimizer
        row = {"outer_step": epoch + 1, "horizon": optimizer.horizon, **(logs or {})}
        for prefix, buckets in (
            ("", {name: schedule.values for name, schedule in optimizer.schedules.items()}),
            ("hypergradient/", optimizer.hypergradients),
        ):
            for name, values in buckets.items():
                row.update({f"{prefix}{name}[{k}]": v for k, v in enumerate(values.tolist())})
        self._rows.append(row)
        self._write()

    def _write(self):
        finite = [row for row in self._rows if np.isfinite(row.get("val_loss", np.nan))]
        if finite:
            best = min(finite, key=lambda row: row["val_loss"])
            save_schedules(self.directory / "schedules.json", self._schedules_of(best))
        with _replacement(self.directory / "history.csv") as path:
            _write_csv(path, self._rows)
        figure = draw_schedules(
            [self._schedules_of(row) for row in self._rows],
            [row["outer_step"] for row in self._rows],
        )
        with _replacement(self.directory / "schedules.png") as path:
            figure.savefig(path, format="png", dpi=150)

    def _schedules_of(self, row):
        return {
            h.name: BucketedSchedule(
                [row[f"{h.name}[{k}]"] for k in range(h.num_buckets)], row["horizon"]
            )
            for h in self.model.optimizer.hyperparameters
        }

    def _read_rows(self, outer_steps):
        """The rows of the first `outer_steps` outer steps, written by an earlier process."""
        path = self.directory / "history.csv"
        if not outer_steps or not path.exists():
            return []
        try:
            with path.open(newline="") as file:
                rows = [
                    {key: float(value) for key, value in row.items() if value}
                    for row in csv.DictReader(file)
                ]
            for row in rows:
                row.update(outer_step=int(row["outer_step"]), horizon=int(row["horizon"]))
                self._schedules_of(row)
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise ValueError(
                f"{str(path)!r} is not of this search, which is to go on at outer step "
                f"{outer_steps + 1}: move it away, or choose another directory. "
                f"Reason: {type(error).__name__}: {error}"
            ) from error
        return [row for row in rows if row["outer_step"] <= outer_steps]


def draw_schedules(schedules, outer_steps=None):
    """Draws schedules, one panel a hyperparameter: old ones pale, the last one dark.

    Args:
        schedules: List of `{name: BucketedSchedule}`, oldest first, all with the same names.
            Where their horizons differ they are drawn over the fraction of the horizon.
        outer_steps: Their numbers for the legend. Defaults to `1, 2, …`.

    Returns:
        A `matplotlib.figure.Figure`; it belongs to no window and needs no closing.

    Raises:
        ValueError: When there is nothing to draw, or the names differ.

    Example:

    >>> draw_schedules([keras_fds.load_schedules("run/schedules.json")]).savefig("schedules.png")
    """
    schedules = list(schedules)
    names = list(schedules[0]) if schedules else []
    if not names or any(set(names) != set(each) for each in schedules):
        raise ValueError(
            "`schedules` must be a list of dictionaries with the same hyperparameters. "
            f"Received: schedules={schedules}"
        )
    outer_steps = range(1, len(schedules) + 1) if outer_steps is None else outer_steps
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(1.2 + 3.6 * columns, 2.9 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for name, panel in zip(names, panels):
        _draw_panel(panel, name, [each[name] for each in schedules], outer_steps)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    if len(schedules) > 1:
        lines, labels = panels[0].get_legend_handles_labels()
        shown = sorted({round(i) for i in np.linspace(0, len(lines) - 1, 6)})
        figure.legend(
            [lines[i] for i in shown],
            [labels[i] for i in shown],
            title="outer step",
            loc="outside right upper",
            frameon=False,
        )
    return figure


def _draw_panel(panel, name, schedules, outer_steps):
    fraction = len({schedule.horizon for schedule in schedules}) > 1
    last = len(schedules) - 1
    for i, (schedule, outer_step) in enumerate(zip(schedules, outer_steps)):
        edges = _edges(schedule) / (schedule.horizon if fraction else 1)
        panel.stairs(
            schedule.values,
            edges,
            baseline=None,
            color=colormaps["Blues"](1.0 if i == last else 0.2 + 0.5 * i / max(last, 1)),
            linewidth=2.2 if i == last else 1.1,
            label=str(outer_step),
        )
    panel.set_xlabel("inner step / horizon" if fraction else "inner step")
    panel.set_ylabel(name)
    panel.margins(x=0)
    if all(np.all(schedule.values >= 0) for schedule in schedules):
        highest = max(schedule.values.max() for schedule in schedules)
        top = highest if highest > 0 else 1
        panel.set_ylim(-0.02 * top, 1.06 * top)
    panel.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
    panel.set_axisbelow(True)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def _edges(schedule):
    """The first inner step of every bucket, then the horizon; int64 `[num_buckets + 1]`."""
    buckets = np.arange(schedule.num_buckets + 1, dtype="int64")
    return -(-buckets * schedule.horizon // schedule.num_buckets)


def _pixels(figure):
    """A figure as uint8 `[height, width, 3]`."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _write_curves(schedules):
    for name, schedule in schedules.items():
        edges = _edges(schedule)
        steps = np.unique(np.concatenate([edges[:-1], edges[1:] - 1]))
        if len(steps) > _MOST_POINTS:
            steps = steps[np.linspace(0, len(steps) - 1, _MOST_POINTS).round().astype(int)]
        for step, value in zip(steps.tolist(), schedule.per_step()[steps]):
            tf.summary.scalar(f"schedules/{name}", value, step=step)


def _write_buckets(optimizer, outer_step):
    values = {name: schedule.values for name, schedule in optimizer.schedules.items()}
    for kind, buckets in (
        ("value", values),
        ("hypergradient", optimizer.hypergradients),
        ("step_size", optimizer.step_sizes),
    ):
        for name in optimizer.names:
            for k, number in enumerate(buckets[name]):
                tf.summary.scalar(f"{name}/bucket_{k}/{kind}", number, step=outer_step)


def _flat_start_values(optimizer):
    """What the HParams table shows of an optimizer: a flat dictionary of numbers and strings."""
    flat = {
        "optimizer": type(optimizer.optimizer).__name__,
        "outer": type(optimizer.outer).__name__,
    }
    for hyperparameter in optimizer.hyperparameters:
        name, initial = hyperparameter.name, hyperparameter.initial
        if isinstance(initial, list):
            flat.update({f"{name}/initial[{k}]": value for k, value in enumerate(initial)})
        else:
            flat[f"{name}/initial"] = initial
        flat[f"{name}/num_buckets"] = hyperparameter.num_buckets
        flat[f"{name}/step_size"] = hyperparameter.step_size
    return flat


def _as_markdown(config):
    if isinstance(config, str):
        return config
    lines = json.dumps(config, indent=2, default=str).splitlines()
    return "\n".join(f"    {line}" for line in lines)


def _write_csv(path, rows):
    """Writes rows of unlike keys under one header: losses and metrics first, buckets last."""
    keys = dict.fromkeys(key for row in rows for key in row)
    ordered = sorted(keys, key=lambda key: 2 if key.startswith("hypergradient/") else "[" in key)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ordered)
        writer.writeheader()
        writer.writerows(rows)


@contextlib.contextmanager
def _replacement(path):
    """A path to write to, which then becomes `path` in one move."""
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _writable_directory(directory, argument):
    path = pathlib.Path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(
            f"`{argument}` must be a directory that can be made and written to: "
            f"{error.strerror}. Received: {argument}={str(directory)!r}"
        ) from error
    return path


def _hyper_optimizer(callback):
    optimizer = callback.model.optimizer
    if not isinstance(optimizer, HyperOptimizer):
        raise ValueError(
            f"keras_fds.callbacks.{type(callback).__name__} shows learned schedules: compile the "
            f"model with a keras_fds.HyperOptimizer. Received: optimizer={optimizer}"
        )
    return optimizer
