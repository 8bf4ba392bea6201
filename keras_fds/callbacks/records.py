"""What callbacks that show or keep the records of a search share."""

import warnings

import keras
import numpy as np

from keras_fds.callbacks.pictures import draw_schedules
from keras_fds.differentiation import Replicas
from keras_fds.schedules import BucketedSchedule
from keras_fds.search import QUANTILES


class ByRecords(keras.callbacks.Callback):
    """Calls `_catch_up` whenever the search may have new records; of several workers in the chief.

    The chief is the one that writes files.
    """

    def on_epoch_begin(self, epoch, logs=None):
        if Replicas.of(self.model).is_chief:
            self._catch_up()

    def on_epoch_end(self, epoch, logs=None):
        self.on_epoch_begin(epoch)

    def on_train_end(self, logs=None):
        self.on_epoch_begin(None)


def warn_of_unwritten(directory, error):
    warnings.warn(
        f"The results so far could not be written to {str(directory)!r}. The search continues, "
        f"and the next outer step tries again. Reason: {error}",
        RuntimeWarning,
        stacklevel=2,
    )


def schedules_of(record):
    """`{name: BucketedSchedule}` of an outer step."""
    return {
        name: BucketedSchedule(values, record.horizon, record.interpolations.get(name, "constant"))
        for name, values in record.values.items()
    }


def suffixes(name, record):
    """What stands behind a hyperparameter's name for each number that a bucket has in a record.

    `""` for one number, `"[3]"` for an element of a vector, `"_50%"` for a quantile of a long one.
    """
    if name in record.in_quantiles:
        return [f"_{quantile}%" for quantile in QUANTILES]
    shape = np.shape(record.values[name])
    return [f"[{i}]" for i in range(shape[1])] if len(shape) > 1 else [""]


def bands_of(record):
    """`{name: (below, above)}`, or `None`; see `Record.bands`."""
    if record.bands is None:
        return None
    below, above = record.bands
    return {name: (below[name], above[name]) for name in below}


def picture_of(records):
    """A picture of the schedules of the outer steps over the longest horizon so far."""
    longest = max(record.horizon for record in records)
    records = [record for record in records if record.horizon == longest]
    outer_steps = [record.outer_step for record in records]
    best = [record for record in records if record.outcome == "best"]
    return draw_schedules(
        [schedules_of(record) for record in records],
        outer_steps,
        best=best[-1].outer_step if best else None,
        bands=bands_of(best[-1]) if best else None,
        quantiles={name: QUANTILES for name in records[-1].in_quantiles},
    )
