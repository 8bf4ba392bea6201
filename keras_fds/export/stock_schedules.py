"""Learned schedules as schedules of stock Keras."""

from collections.abc import Mapping

import keras

from keras_fds.export.snippet import piecewise_constant
from keras_fds.schedules import BucketedSchedule


def keras_schedules(
    schedules: Mapping[str, BucketedSchedule],
) -> dict[str, keras.optimizers.schedules.LearningRateSchedule]:
    """Learned schedules as schedules of stock Keras.

    Any Keras optimizer takes one as its `learning_rate`. Its other numbers cannot change in time
    in stock Keras; see `python_snippet`.

    Args:
        schedules: `{name: BucketedSchedule}`, such as `optimizer.schedules`.

    Returns:
        `{name: keras.optimizers.schedules.PiecewiseConstantDecay}`, the same numbers at every
        step, in float32; a line between two knots is a `PolynomialDecay`.

    Raises:
        ValueError: When a schedule has lines between more than two knots, or is a vector, which no
            stock schedule is.

    Example:

    >>> schedules = {"learning_rate": keras_fds.BucketedSchedule([0.3, 0.1], horizon=10)}
    >>> float(keras_fds.export.keras_schedules(schedules)["learning_rate"](5))
    0.10000000149011612
    """
    return {name: _stock(name, schedule) for name, schedule in schedules.items()}


def _stock(name, schedule):
    if schedule.values.ndim > 1:
        raise ValueError(
            f"A stock schedule has one value at a step, and {name!r} is a vector. Use its "
            f"`values`, or leave it out. Received: {schedule}"
        )
    values = schedule.values.tolist()
    if schedule.interpolation == "constant" or len(values) == 1:
        return piecewise_constant(values, schedule.horizon)
    if len(values) > 2:
        raise ValueError(
            f"Stock Keras has no schedule of {len(values)} knots with lines between them, such as "
            f"that of {name!r}. Use keras_fds.export.python_snippet, or the schedule itself. "
            f"Received: {schedule}"
        )
    return keras.optimizers.schedules.PolynomialDecay(values[0], schedule.horizon, values[1])
