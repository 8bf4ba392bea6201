"""A search's results as files."""

import csv

import numpy as np

from keras_fds.callbacks.records import ByRecords, picture_of, schedules_of, warn_of_unwritten
from keras_fds.files import replacement, writable_directory
from keras_fds.schedules import save_schedules
from keras_fds.search import check_searching


class ScheduleExport(ByRecords):
    """Keeps a search's results in a directory; for `keras_fds.fit`.

    After each outer step it writes

    - `schedules.json`: the schedules of the best outer step so far, by the outer rule, for
      `keras_fds.load_schedules`; not there until an outer step had a finite validation loss;
    - `history.csv`: a row an outer step: `outer_step`, `horizon`, losses and metrics, the standard
      error `val_loss_error` of the validation loss over its batches, whether the outer rule
      `accepted` the point and whether it was the `best` so far (1 or 0), then the value of every
      bucket (`learning_rate[0]`, …) and its hypergradient (`hypergradient/learning_rate[0]`, …);
      what is not a number is written as it is;
    - `schedules.png`: a picture of all schedules so far.

    Each replaces its older version in one move, so an interrupt leaves no half file. A `fit` that
    goes on with a search (`Checkpoint`, or Keras's `BackupAndRestore`) writes those of all its
    outer steps. When they cannot be written, as on a full disk, it warns, and the search goes on.

    Args:
        directory: Made when it does not exist.

    Raises:
        ValueError: When `directory` cannot be written to; at the beginning of training, when the
            model's optimizer is no `HyperOptimizer`.

    Example:

    >>> export = keras_fds.callbacks.ScheduleExport("run")
    >>> keras_fds.fit(model, x, y, validation_split=0.05, callbacks=[export])
    >>> keras_fds.load_schedules("run/schedules.json")
    """

    def __init__(self, directory):
        super().__init__()
        self.directory = writable_directory(directory, "directory")

    def on_train_begin(self, logs=None):
        check_searching(self)
        self._written = 0

    def _catch_up(self):
        records = self.model.optimizer.search.records
        if self._written < len(records):
            self._written = len(records)
            try:
                self._write(records)
            except OSError as error:
                warn_of_unwritten(self.directory, error)

    def _write(self, records):
        best = [record for record in records if record.outcome == "best"]
        if best:
            save_schedules(self.directory / "schedules.json", schedules_of(best[-1]))
        with replacement(self.directory / "history.csv") as path:
            _write_csv(path, [_row(record) for record in records])
        with replacement(self.directory / "schedules.png") as path:
            picture_of(records).savefig(path, format="png", dpi=150)


def _row(record):
    """An outer step as a row of `history.csv`."""
    logs = {name: value for name, value in record.logs.items() if np.ndim(value) == 0}
    row = {"outer_step": record.outer_step, "horizon": record.horizon, **logs}
    row["val_loss_error"] = record.val_loss_error
    row["accepted"] = int(record.outcome != "rejected")
    row["best"] = int(record.outcome == "best")
    for prefix, by_name in (("", record.values), ("hypergradient/", record.hypergradients or {})):
        for name, numbers in by_name.items():
            row.update({f"{prefix}{name}[{k}]": number for k, number in enumerate(numbers)})
    return row


def _write_csv(path, rows):
    """Writes rows of unlike keys under one header: losses and metrics first, buckets last."""
    keys = dict.fromkeys(key for row in rows for key in row)
    ordered = sorted(keys, key=lambda key: 2 if key.startswith("hypergradient/") else "[" in key)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ordered)
        writer.writeheader()
        writer.writerows(rows)
