"""A search in TensorBoard."""

import contextlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_fds.callbacks.pictures import edges, pixels
from keras_fds.callbacks.records import (
    ByRecords,
    picture_of,
    schedules_of,
    suffixes,
    warn_of_unwritten,
)
from keras_fds.files import writable_directory
from keras_fds.outer import SignDescent
from keras_fds.search import check_searching

# TensorBoard keeps every point of a curve of up to this length.
_MOST_POINTS = 400
_LONG = 100  # Lists of more entries are not written out.
# The runs whose event files a search replaces, and how their names end.
_RUNS = (".", "search", "train", "validation", "schedules/outer_step_*")
_SUFFIX = ".keras_fds"


class TensorBoard(ByRecords):
    """Shows a search in TensorBoard; for `keras_fds.fit`.

    Every outer step writes, and flushes:

    - `schedules/learning_rate`, …: each schedule as a curve over inner steps, with a point at
      either end of every bucket. Every outer step is a run of its own,
      `schedules/outer_step_001`, …, so that TensorBoard overlays them.
    - `learning_rate/bucket_0/value`, `…/hypergradient`, `…/one_deviation_below`, `…_above` and
      `best_val_loss` over outer steps, and a picture of all schedules so far: run `search`. Vectors
      have a tag for each of up to ten elements, or for seven quantiles:
      `sample_weight_50%/bucket_0/value`.
    - `epoch_loss` and the metrics over outer steps: runs `train` and `validation`.

    At the beginning it writes the optimizer's configuration and `config` as text, and an entry of
    the HParams table: the start values, compared by the best validation loss. A search replaces the
    files that this callback wrote into the folder before. A resumed search (`Checkpoint`, or
    Keras's `BackupAndRestore`) writes all its outer steps again. When a file cannot be written, as
    on a full disk, the callback warns and the search continues.

    Args:
        log_dir: Folder for the event files; made when it does not exist. Defaults to `"logs"`.
        config: A description of the experiment, a string (Markdown) or a dictionary. Defaults
            to `None`, no description.

    Raises:
        ValueError: At the beginning of training, when `log_dir` cannot be written to or the
            model's optimizer is not a `HyperOptimizer`.

    Example:

    >>> board = keras_fds.callbacks.TensorBoard("logs")
    >>> keras_fds.fit(model, x, y, validation_split=0.05, callbacks=[board])

    Then type `tensorboard --logdir logs`.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] = "logs",
        config: str | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.log_dir = pathlib.Path(log_dir)
        self.config = config
        self._writers: dict[str, Any] = {}

    def on_train_begin(self, logs=None):
        check_searching(self)
        writable_directory(self.log_dir, "log_dir")
        self._close()
        self._shown = None

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        self._close()

    def _catch_up(self):
        """Shows the outer steps that are not shown yet."""
        records = self.model.optimizer.search.records
        try:
            if self._shown is None:
                self._shown = 0
                for run in _RUNS:
                    for path in self.log_dir.glob(f"{run}/events.out.tfevents.*{_SUFFIX}"):
                        path.unlink()
                self._begin()
            while self._shown < len(records):
                self._shown += 1
                self._show(records[: self._shown])
        except (OSError, tf.errors.OpError) as error:
            warn_of_unwritten(self.log_dir, error)

    def _begin(self):
        optimizer = self.model.optimizer
        from tensorboard.plugins.hparams import api as hparams

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

    def _show(self, records):
        """Shows the last of some outer steps."""
        record = records[-1]
        outer_step, logs = record.outer_step, record.logs
        run = f"schedules/outer_step_{outer_step:03d}"
        with self._run(run):
            names = {name: suffixes(name, record) for name in record.values}
            _write_curves(schedules_of(record), names)
        self._writers.pop(run).close()
        best = [each.logs.get("val_loss") for each in records if each.outcome == "best"]
        with self._run("search"):
            _write_buckets(record)
            if best and best[-1] is not None:
                tf.summary.scalar("best_val_loss", best[-1], step=outer_step)
            figure = picture_of(records)
            tf.summary.image("schedules", pixels(figure)[np.newaxis], step=outer_step)
        for run, prefix in (("train", ""), ("validation", "val_")):
            with self._run(run):
                for name, value in logs.items():
                    if name.startswith("val_") == bool(prefix) and np.ndim(value) == 0:
                        tag = f"epoch_{name.removeprefix(prefix)}"
                        tf.summary.scalar(tag, value, step=outer_step)

    @contextlib.contextmanager
    def _run(self, name):
        """While open, `tf.summary` writes to the run of that name; flushed at the end."""
        if name not in self._writers:
            folder = str(self.log_dir / name)
            self._writers[name] = tf.summary.create_file_writer(folder, filename_suffix=_SUFFIX)
        with self._writers[name].as_default():
            yield
        self._writers[name].flush()

    def _close(self):
        while self._writers:
            self._writers.popitem()[1].close()


def _write_curves(schedules, suffixes_of):
    for name, schedule in schedules.items():
        bounds = edges(schedule)
        steps = np.unique(np.concatenate([bounds[:-1], bounds[1:] - 1]))
        steps = steps[(steps >= 0) & (steps < schedule.horizon)]  # There may be fewer than buckets.
        if len(steps) > _MOST_POINTS:
            steps = steps[np.linspace(0, len(steps) - 1, _MOST_POINTS).round().astype(int)]
        for step, values in zip(steps.tolist(), schedule.per_step()[steps]):
            for suffix, value in zip(suffixes_of[name], np.atleast_1d(values)):
                tf.summary.scalar(f"schedules/{name}{suffix}", value, step=step)


def _write_buckets(record):
    below, above = record.bands or ({}, {})
    for kind, by_name in (
        ("value", record.values),
        ("hypergradient", record.hypergradients or {}),
        ("one_deviation_below", below),
        ("one_deviation_above", above),
    ):
        for name, numbers in by_name.items():
            if len(numbers) > _LONG:
                continue
            for k, of_bucket in enumerate(numbers):
                for suffix, number in zip(suffixes(name, record), np.atleast_1d(of_bucket)):
                    tag = f"{name}{suffix}/bucket_{k}/{kind}"
                    tf.summary.scalar(tag, number, step=record.outer_step)


def _flat_start_values(optimizer):
    """What the HParams table shows of an optimizer: a flat dictionary of numbers and strings."""
    flat = {
        "optimizer": type(optimizer.optimizer).__name__,
        "outer": type(optimizer.outer).__name__,
    }
    for hyperparameter in optimizer.hyperparameters:
        name, initial = hyperparameter.name, hyperparameter.initial
        if hyperparameter.is_vector:
            flat[f"{name}/shape"] = str(hyperparameter.shape)
        elif isinstance(initial, list):
            flat.update({f"{name}/initial[{k}]": value for k, value in enumerate(initial)})
        else:
            flat[f"{name}/initial"] = initial
        flat[f"{name}/num_buckets"] = hyperparameter.num_buckets
        if isinstance(optimizer.outer, SignDescent):  # Other rules have no step sizes.
            flat[f"{name}/step_size"] = hyperparameter.step_size
        flat[f"{name}/scale"] = hyperparameter.scale
        flat[f"{name}/interpolation"] = hyperparameter.interpolation
    return flat


def _as_markdown(config):
    if isinstance(config, str):
        return config
    lines = json.dumps(_in_short(config), indent=2, default=str).splitlines()
    return "\n".join(f"    {line}" for line in lines)


def _in_short(config):
    """A JSON-like structure with a text in place of every long list."""
    if isinstance(config, dict):
        return {key: _in_short(value) for key, value in config.items()}
    if not isinstance(config, (list, tuple)):
        return config
    if len(config) > _LONG:
        return f"{len(config)} entries"
    return [_in_short(value) for value in config]
