"""A search's results as files."""

import csv
import dataclasses
import os

import numpy as np

from keras_fds.callbacks.records import (
    ByRecords,
    picture_of,
    schedules_of,
    suffixes,
    warn_of_unwritten,
)
from keras_fds.files import replacement, writable_directory
from keras_fds.schedules import save_schedules
from keras_fds.search import check_searching


class ScheduleExport(ByRecords):
    """Writes a search's results into a directory; for `keras_fds.fit`.

    After each outer step it writes:

    - `schedules.json`: the schedules of the best outer step so far, by the outer rule, for
      `keras_fds.load_schedules`. It is missing until an outer step has a finite validation loss.
    - `history.csv`: one row per outer step, with `outer_step`, `horizon`, losses and metrics;
      `val_loss_error`, the standard error of the validation loss over its batches; `spent`, what
      all outer steps so far cost, in plain trainings; `accepted` (0 where training broke down) and
      `best`, the outer rule's verdict (1 or 0); the value of every bucket (`learning_rate[0]`, …)
      and its hypergradient, where it was computed (`hypergradient/learning_rate[0]`, …); where the
      rule knows, the best values' standard deviation (`below/learning_rate[0]`, `above/…`). A
      vector has a column for each of up to ten elements (`class_weight[0][3]`), else for seven
      quantiles (`sample_weight[0]_50%`). NaN and infinities stay as they are.
    - `schedules.png`: a picture of all schedules over the longest horizon so far.

    Each file replaces its older version in one move, so an interrupt leaves no partial file. A
    resumed search (`Checkpoint`, or Keras's `BackupAndRestore`) writes all its outer steps. When a
    file cannot be written, as on a full disk, the callback warns and the search continues.

    Args:
        directory: Folder for the files; made when it does not exist.
        every_picture: Whether the picture is drawn after every outer step, which takes some tenths
            of a second. Defaults to `True`; otherwise it is drawn once, at the end.

    Raises:
        ValueError: When `directory` cannot be written to; at the beginning of training, when the
            model's optimizer is not a `HyperOptimizer`.

    Example:

    >>> export = keras_fds.callbacks.ScheduleExport("run")
    >>> keras_fds.fit(model, x, y, validation_split=0.05, callbacks=[export])
    >>> keras_fds.load_schedules("run/schedules.json")
    """

    def __init__(self, directory: str | os.PathLike[str], every_picture: bool = True) -> None:
        super().__init__()
        self.directory = writable_directory(directory, "directory")
        self.every_picture = every_picture

    def on_train_begin(self, logs=None):
        check_searching(self)
        self._written = 0

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        records = self.model.optimizer.search.records
        if records and not self.every_picture:
            self._try(self._draw, records)

    def _catch_up(self):
        records = self.model.optimizer.search.records
        if self._written < len(records):
            self._written = len(records)
            self._try(self._write, records)

    def _try(self, write, records):
        try:
            write(records)
        except OSError as error:
            warn_of_unwritten(self.directory, error)

    def _write(self, records):
        best = [record for record in records if record.outcome == "best"]
        if best:
            optimizer = self.model.optimizer
            values = optimizer.buckets.values(optimizer.search.best.coordinates)
            best = dataclasses.replace(best[-1], values=values)
            save_schedules(self.directory / "schedules.json", schedules_of(best))
        with replacement(self.directory / "history.csv") as path:
            _write_csv(path, [_row(record) for record in records])
        if self.every_picture:
            self._draw(records)

    def _draw(self, records):
        with replacement(self.directory / "schedules.png") as path:
            picture_of(records).savefig(path, format="png", dpi=150)


def _row(record):
    """An outer step as a row of `history.csv`."""
    logs = {name: value for name, value in record.logs.items() if np.ndim(value) == 0}
    row = {"outer_step": record.outer_step, "horizon": record.horizon, **logs}
    row["val_loss_error"], row["spent"] = record.val_loss_error, record.spent
    row["accepted"] = int(record.outcome != "rejected")
    row["best"] = int(record.outcome == "best")
    below, above = record.bands or ({}, {})
    for prefix, by_name in {
        "": record.values,
        "hypergradient/": record.hypergradients or {},
        "below/": below,
        "above/": above,
    }.items():
        for name, numbers in by_name.items():
            for k, of_bucket in enumerate(numbers):
                for suffix, number in zip(suffixes(name, record), np.atleast_1d(of_bucket)):
                    row[f"{prefix}{name}[{k}]{suffix}"] = number
    return row


def _write_csv(path, rows):
    """Writes rows of different keys under one header: losses and metrics first, buckets last."""
    keys = dict.fromkeys(key for row in rows for key in row)
    ordered = sorted(keys, key=lambda key: 2 if "/" in key.split("[")[0] else "[" in key)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ordered)
        writer.writeheader()
        writer.writerows(rows)
