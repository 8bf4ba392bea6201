"""When a run is given up: its training loss is not finite, or far above that of its start."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

# The first `PATIENCE` steps tell the loss at the start. As many high losses in a row end a run; a
# spike of a few batches does not.
PATIENCE = 10


class LossHistory(NamedTuple):
    """What a detector remembers of the losses so far; float64 scalars."""

    steps: tf.Tensor
    start: tf.Tensor  # The greatest loss of the first steps that was not high.
    high: tf.Tensor  # How many of the last losses in a row were high.


class DivergenceDetector:
    """Ends a run after `PATIENCE` high losses in a row, or one that is not finite.

    A loss is high when it is more than `factor` times the greatest of the first `PATIENCE` losses
    that were not high themselves. When one of these is not positive, no loss is high. The losses
    seen are remembered in variables, so the number of steps in a compiled call does not matter.

    Attributes:
        factor: A variable. When it is infinite, as at first, only NaN and infinite losses end a
            run.
    """

    def __init__(self):
        self.factor = _variable(np.inf)
        self.seen = LossHistory(steps=_variable(0.0), start=_variable(0.0), high=_variable(0.0))

    def reset(self, factor=None):
        """Begins a new run; without a factor it is infinite."""
        self.factor.assign(np.inf if factor is None else factor)
        self.write(LossHistory(0.0, 0.0, 0.0))

    def read(self):
        """The history so far, as tensors."""
        return tf.nest.map_structure(lambda variable: variable.read_value(), self.seen)

    def write(self, seen):
        """Keeps a history for the next call."""
        for variable, value in zip(self.seen, seen):
            variable.assign(value)

    def goes_on(self, loss, seen):
        """`(whether the run continues, the new history)` after a step; in a graph."""
        loss = tf.reduce_mean(tf.cast(loss, "float64"))  # One value per example, perhaps.
        is_high = (seen.start > 0) & (loss > self.factor * seen.start)
        start = tf.where(loss > 0, tf.maximum(seen.start, loss), np.inf)
        counts = (seen.steps < PATIENCE) & ~is_high
        seen = LossHistory(
            seen.steps + 1,
            tf.where(counts, start, seen.start),
            tf.where(is_high, seen.high + 1, 0.0),
        )
        return tf.math.is_finite(loss) & (seen.high < PATIENCE), seen

    @property
    def reason(self):
        """Why a run was given up: the predicate of a sentence about its training loss."""
        if self.seen.high < PATIENCE:
            return "stopped being finite"
        factor, start = float(self.factor), float(self.seen.start)
        return (
            f"was above {factor * start:.3g}, {factor:g} times that of the first steps, for "
            f"the {PATIENCE}th step in a row"
        )


def steps_while_ok(count, one_step, *carried, detector=None):
    """Runs `one_step(i, *carried) → (loss, *carried)` `count` times, or until a run is given up.

    Returns `(steps, ok, *carried)`. Without a detector the losses were checked before. The counter
    is int32: on a GPU such numbers, and what slices with them, stay on the host.
    """
    count = tf.cast(count, "int32")

    def body(i, _, seen, *carried):
        loss, *carried = one_step(i, *carried)
        ok, seen = detector.goes_on(loss, seen) if detector else (tf.constant(True), seen)
        return i + 1, ok, seen, *carried

    steps, ok, seen, *carried = tf.while_loop(
        lambda i, ok, *_: (i < count) & ok,
        body,
        [tf.constant(0), tf.constant(True), detector.read() if detector else (), *carried],
        parallel_iterations=1,
    )
    if detector:
        detector.write(seen)
    return steps, ok, *carried


def _variable(value):
    return tf.Variable(value, trainable=False, dtype="float64")
