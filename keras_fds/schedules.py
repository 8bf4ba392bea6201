"""Learned schedules: piecewise constant or linear, stretched to any horizon, kept as JSON."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from keras_fds.files import replacement

_FORMAT = "keras_fds.schedules"
_VERSION = 3  # The first with vectors; 2 is the first with lines between values.

Interpolation = Literal["constant", "linear"]
INTERPOLATIONS = ("constant", "linear")
_MOST_SHOWN = 100  # Values in the text that stands for a schedule.


def shares(interpolation, num_values, inner_step, horizon):
    """The row of the sharing matrix that an inner step has: which values it shares, and how.

    Its number is λ(t) = (1 − fraction) · values[lower] + fraction · values[upper]. In a bucket both
    are ⌊num_values · t / horizon⌋. With straight lines, value k is a knot at the step
    k · horizon / (num_values − 1), the last one at the end of the horizon. From the horizon on,
    steps have the last value.

    Args:
        interpolation: `"constant"` or `"linear"`.
        num_values: Number of values.
        inner_step, horizon: Whole numbers, arrays, or int64 tensors.

    Returns:
        `(lower, upper, fraction)`, the fraction in float64, or `None` in a bucket; for `blend`.
    """
    clip = tf.clip_by_value if tf.is_tensor(inner_step) or tf.is_tensor(horizon) else np.clip
    last = num_values - 1
    if interpolation == "constant":
        bucket = clip(num_values * inner_step // horizon, 0, last)
        return bucket, bucket, None
    position = clip(last * inner_step, 0, last * horizon)
    lower = position // horizon
    return lower, clip(lower + 1, 0, last), (position - lower * horizon) / horizon


def blend(lower, upper, fraction):
    """What a step has of two values; see `shares`."""
    return lower if fraction is None else lower + fraction * (upper - lower)


@keras.saving.register_keras_serializable("keras_fds")
class BucketedSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of a few values that share the horizon.

    With `interpolation="constant"` every value has a bucket, an equal part of the horizon:
    `schedule(t) = values[floor(num_buckets * t / horizon)]`. With `"linear"` the values are knots
    at equal distances, the last one at the end of the horizon, with straight lines between them.
    From the horizon on, steps keep the last value. It is a Keras `LearningRateSchedule`, so any
    Keras optimizer takes it as its `learning_rate`.

    Args:
        values: One number per bucket or knot; of a vector one array per bucket or knot.
        horizon: Number of inner steps that the buckets divide.
        interpolation: `"constant"` or `"linear"`. Defaults to `"constant"`.

    Raises:
        ValueError: When there are no values, a value is not finite, the horizon is
            shorter than one step, or the interpolation is another word.

    Example:

    >>> schedule = BucketedSchedule([0.3, 0.1], horizon=10)
    >>> float(schedule(4)), float(schedule(5))
    (0.30000001192092896, 0.10000000149011612)
    >>> schedule.stretched(100).horizon
    100
    >>> float(BucketedSchedule([0.5, 0.0], horizon=10, interpolation="linear")(5))
    0.25
    """

    def __init__(
        self,
        values: ArrayLike,
        horizon: int,
        interpolation: Interpolation = "constant",
    ) -> None:
        try:
            self.values = np.atleast_1d(np.array(values, dtype="float64"))
        except (TypeError, ValueError, OverflowError):
            self.values = np.zeros(0)
        if self.values.size < 1 or not np.all(np.isfinite(self.values)):
            raise ValueError(
                "`values` must be one or more finite numbers, or arrays of one shape. "
                f"Received: values={values!r}"
            )
        is_number = isinstance(horizon, (int, float, np.number))
        if not is_number or not 1 <= horizon < 2**63 or int(horizon) != horizon:
            raise ValueError(
                "`horizon` must be a whole number of inner steps, at least 1. "
                f"Received: horizon={horizon!r}"
            )
        if interpolation not in INTERPOLATIONS:
            raise ValueError(
                "`interpolation` must be 'constant' or 'linear'. "
                f"Received: interpolation={interpolation!r}"
            )
        self.horizon, self.interpolation = int(horizon), interpolation

    @property
    def num_buckets(self) -> int:
        """Number of buckets or knots."""
        return len(self.values)

    def __call__(self, step: Any) -> Any:
        lower, upper, fraction = self._shares(tf.cast(step, "int64"))
        values = tf.constant(self.values, keras.config.floatx())
        if fraction is not None:
            fraction = tf.cast(fraction, values.dtype)
        return blend(tf.gather(values, lower), tf.gather(values, upper), fraction)

    def stretched(self, horizon: int) -> "BucketedSchedule":
        """The same shape over another number of inner steps."""
        return BucketedSchedule(self.values, horizon, self.interpolation)

    def per_step(self) -> np.ndarray:
        """The value at every inner step, float64 of shape `[horizon, *shape]`."""
        lower, upper, fraction = self._shares(np.arange(self.horizon))
        if fraction is not None:
            fraction = fraction.reshape(-1, *[1] * (self.values.ndim - 1))
        return blend(self.values[lower], self.values[upper], fraction)

    def _shares(self, steps):
        return shares(self.interpolation, self.num_buckets, steps, self.horizon)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"values": self.values.tolist(), "horizon": self.horizon}
        if self.interpolation != "constant":
            config["interpolation"] = self.interpolation
        return config

    def __repr__(self):
        config = self.get_config()
        if self.values.size > _MOST_SHOWN:
            config["values"] = _InShort(
                f"<{'x'.join(map(str, self.values.shape))} values from {self.values.min():.3g} "
                f"to {self.values.max():.3g}>"
            )
        arguments = ", ".join(f"{key}={value!r}" for key, value in config.items())
        return f"BucketedSchedule({arguments})"


class _InShort(str):
    """A text that is shown without quotation marks."""

    __repr__ = str.__str__


def save_schedules(path: str | os.PathLike[str], schedules: Mapping[str, BucketedSchedule]) -> None:
    """Writes schedules as a readable JSON file, replacing an older one in one move.

    Args:
        path: File to write.
        schedules: `{"learning_rate": BucketedSchedule, …}`.

    Example:

    >>> save_schedules("schedules.json", optimizer.schedules)
    """
    configs = {name: schedule.get_config() for name, schedule in schedules.items()}
    # Every bucket of a vector stands on one line.
    lines: dict[str, list] = {}
    for name, schedule in schedules.items():
        if schedule.values.ndim > 1:
            keys = [f"values of {name}, bucket {k}" for k in range(schedule.num_buckets)]
            lines.update(zip(keys, configs[name]["values"]))
            configs[name]["values"] = keys
    content = {
        "format": _FORMAT,
        # Files are read by older versions, too, where these know all that is in them.
        "version": max([1, *map(_version_of, schedules.values())]),
        "schedules": configs,
    }
    text = json.dumps(content, indent=2)
    for key, values in lines.items():
        text = text.replace(json.dumps(key), json.dumps(values), 1)
    with replacement(path) as partial:
        partial.write_text(text + "\n")


def _version_of(schedule):
    """The first version of the file that can hold a schedule."""
    if schedule.values.ndim > 1:
        return 3
    return 2 if schedule.interpolation == "linear" else 1


def load_schedules(path: str | os.PathLike[str]) -> dict[str, BucketedSchedule]:
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
