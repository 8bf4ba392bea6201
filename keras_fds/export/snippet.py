"""Definitions that `keras_fds.export` copies into its code; they need only Keras."""

import operator

import keras
import tensorflow as tf


def piecewise_constant(values, horizon):
    """Keras's schedule that divides `horizon` training steps evenly among the values."""
    ends = [-(-(k + 1) * horizon // len(values)) for k in range(len(values))]
    return keras.optimizers.schedules.PiecewiseConstantDecay(
        [end - 1 for end in ends], [*values, values[-1]]
    )


@keras.saving.register_keras_serializable("keras_fds")
class PiecewiseLinear(keras.optimizers.schedules.LearningRateSchedule):
    """Straight lines between values at equal distances over `horizon` training steps."""

    def __init__(self, values, horizon):
        self.values, self.horizon = values, int(horizon)

    def __call__(self, step):
        pieces = len(self.values) - 1
        scaled = pieces * tf.clip_by_value(tf.cast(step, "int64"), 0, self.horizon)
        lower = tf.minimum(scaled // self.horizon, pieces - 1)
        fraction = (scaled - lower * self.horizon) / self.horizon
        values = tf.constant(self.values, "float64")
        value = values[lower] + fraction * (values[lower + 1] - values[lower])
        return tf.cast(value, keras.config.floatx())

    def get_config(self):
        return {"values": self.values, "horizon": self.horizon}


def tensor_operator(function):
    """`function(number, other)` and `function(other, number)`, with the number as a tensor."""
    return (
        lambda number, other: function(tf.convert_to_tensor(number), other),
        lambda number, other: function(other, tf.convert_to_tensor(number)),
    )


class ScheduledNumber(float):
    """A number of a Keras optimizer that follows a schedule.

    A compiled training step computes with its value at the optimizer's iteration. Python code sees
    the last value, which a saved model keeps. Compared with zero it is always greater: Keras makes
    no slots for a momentum of zero.
    """

    def __new__(cls, schedule, optimizer):
        number = super().__new__(cls, schedule.values[-1])
        number.now = lambda: schedule(optimizer.iterations)
        return number

    def __tf_tensor__(self, dtype=None, name=None):
        return tf.cast(self.now(), dtype or self.dtype)

    def __neg__(self):
        return -tf.convert_to_tensor(self)

    dtype = property(lambda self: keras.config.floatx())
    __bool__ = __ne__ = __gt__ = lambda self, other=0.0: True
    __hash__ = float.__hash__
    __add__, __radd__ = tensor_operator(operator.add)
    __sub__, __rsub__ = tensor_operator(operator.sub)
    __mul__, __rmul__ = tensor_operator(operator.mul)
    __truediv__, __rtruediv__ = tensor_operator(operator.truediv)
    __pow__, __rpow__ = tensor_operator(operator.pow)
