"""Learned schedules: piecewise constant, stretched to any horizon, kept as JSON."""

import json
import pathlib

import keras
import numpy as np
import tensorflow as tf

from keras_fds.files import replacement

_FORMAT = "keras_fds.schedules"
_VERSION = 1


@keras.saving.register_keras_serializable("keras_fds")
class BucketedSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that is constant over each of a few equal parts of the horizon.

    `schedule(t) = values[floor(num_buckets * t / horizon)]`. From the horizon on, steps keep the
    last value. It is a Keras `LearningRateSchedule`, so any Keras optimizer takes it as its
    `learning_rate`.

    Args:
        values: One number per bucket.
        horizon: Number of inner steps that the buckets divide.

    Raises:
        ValueError: When there are no values, a value is not finite, or the horizon is
            shorter than one step.

    Example:

    >>> schedule = BucketedSchedule([0.3, 0.1], horizon=10)
    >>> float(schedule(4)), float(schedule(5))
    (0.30000001192092896, 0.10000000149011612)
    >>> schedule.stretched(100).horizon
    100
    """

    def __init__(self, values, horizon):
        try:
            self.values = np.array(values, dtype="float64").reshape(-1)
        except (TypeError, ValueError, OverflowError):
            self.values = np.zeros(0)
        if self.values.size < 1 or not np.all(np.isfinite(self.values)):
            raise ValueError(
                f"`values` must be one or more finite numbers. Received: values={values!r}"
            )
        is_number = isinstance(horizon, (int, float, np.number))
        if not is_number or not 1 <= horizon < 2**63 or int(horizon) != horizon:
            raise ValueError(
                "`horizon` must be a whole number of inner steps, at least 1. "
                f"Received: horizon={horizon!r}"
            )
        self.horizon = int(horizon)

    @property
    def num_buckets(self):
        """Number of buckets."""
        return len(self.values)

    def __call__(self, step):
        bucket = self.num_buckets * tf.cast(step, "int64") // self.horizon
        values = tf.constant(self.values, keras.config.floatx())
        return tf.gather(values, tf.clip_by_value(bucket, 0, self.num_buckets - 1))

    def stretched(self, horizon):
        """The same shape over another number of inner steps."""
        return BucketedSchedule(self.values, horizon)

    def per_step(self):
        """The value at every inner step, float64 of shape `[horizon]`."""
        return self.values[self.num_buckets * np.arange(self.horizon) // self.horizon]

    def get_config(self):
        return {"values": self.values.tolist(), "horizon": self.horizon}

    def __repr__(self):
        return f"BucketedSchedule(values={self.values.tolist()}, horizon={self.horizon})"


def save_schedules(path, schedules):
    """Writes schedules as a readable JSON file, replacing an older one in one move.

    Args:
        path: File to write.
        schedules: `{"learning_rate": BucketedSchedule, …}`.

    Example:

    >>> save_schedules("schedules.json", optimizer.schedules)
    """
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "schedules": {name: schedule.get_config() for name, schedule in schedules.items()},
    }
    with replacement(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")


def load_schedules(path):
    """Reads what `save_schedules` wrote.

    Args:
        path: File to read.

    Returns:
        `{"learning_rate": BucketedSchedule, …}`.

    Raises:
        ValueError: When the file is missing, corrupt, or of a newer version.

    Example:

    >>> optimizer.schedules = load_schedules("schedules.json")
    """
    try:
        content = json.loads(pathlib.Path(path).read_text())
    except OSError as error:
        raise ValueError(
            f"Cannot read the schedule file {str(path)!r}: {error.strerror}. "
            "Give the path of the schedules.json that a search wrote."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"The schedule file {str(path)!r} is corrupt: it is not JSON ({error})."
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(
            f'{str(path)!r} is not a schedule file: it lacks "format": "{_FORMAT}". Give the path '
            "of the schedules.json that a search wrote."
        )
    version = content.get("version")
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"The schedule file {str(path)!r} is corrupt: its version is {version!r}.")
    if version > _VERSION:
        raise ValueError(
            f"The schedule file {str(path)!r} has version {version!r}; this keras_fds reads "
            f"versions up to {_VERSION}. Install a newer keras_fds."
        )
    try:
        return {name: BucketedSchedule(**config) for name, config in content["schedules"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"The schedule file {str(path)!r} is corrupt: {error}.") from error
