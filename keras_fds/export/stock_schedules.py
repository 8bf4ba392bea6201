"""Learned schedules as schedules of stock Keras."""

from keras_fds.export.snippet import piecewise_constant


def keras_schedules(schedules):
    """Learned schedules as schedules of stock Keras.

    Any Keras optimizer takes one as its `learning_rate`. Its other numbers cannot change in time
    in stock Keras; see `python_snippet`.

    Args:
        schedules: `{name: BucketedSchedule}`, such as `optimizer.schedules`.

    Returns:
        `{name: keras.optimizers.schedules.PiecewiseConstantDecay}`, the same numbers at every
        step, in float32.

    Example:

    >>> schedules = {"learning_rate": keras_fds.BucketedSchedule([0.3, 0.1], horizon=10)}
    >>> float(keras_fds.export.keras_schedules(schedules)["learning_rate"](5))
    0.10000000149011612
    """
    return {
        name: piecewise_constant(schedule.values.tolist(), schedule.horizon)
        for name, schedule in schedules.items()
    }
