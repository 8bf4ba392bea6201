"""When a run is given up: its training loss is not finite, or far above that of its start."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

# As many steps tell what the loss is at the start, and as many high losses in a row end a run: a
# spike of a few batches does not.
PATIENCE = 10


class Seen(NamedTuple):
    """What a watch remembers of the losses so far; float64 scalars."""

    steps: tf.Tensor
    start: tf.Tensor  # The greatest loss of the first steps that was not high.
    high: tf.Tensor  # How many of the last losses in a row were high.


class LossWatch:
    """Ends a run after `PATIENCE` high losses in a row, or one that is not finite.

    A loss is high when it is more than `factor` times the greatest of the first `PATIENCE` losses
    that were not high themselves. When one of these is not positive no loss is high. What was
    seen lives in variables, so that the number of steps a compiled call runs does not matter.

    Attributes:
        factor: A variable; infinite, which it is at first, means that only losses that are not
            finite end a run.
    """

    def __init__(self):
        self.factor = _variable(np.inf)
        self.seen = Seen(*(_variable(0.0) for _ in Seen._fields))

    def reset(self):
        """Begins a new run."""
        self.write(Seen(0.0, 0.0, 0.0))

    def read(self):
        """What was seen, as tensors."""
        return Seen(*(variable.read_value() for variable in self.seen))

    def write(self, seen):
        """Keeps what was seen for the next call."""
        for variable, value in zip(self.seen, seen):
            variable.assign(value)

    def judge(self, loss, seen):
        """`(whether the run goes on, what was seen now)` after a step; in a graph."""
        loss = tf.reduce_mean(tf.cast(loss, "float64"))  # One value an example, perhaps.
        is_high = (seen.start > 0) & (loss > self.factor * seen.start)
        start = tf.where(loss > 0, tf.maximum(seen.start, loss), np.inf)
        counts = (seen.steps < PATIENCE) & ~is_high
        seen = Seen(
            seen.steps + 1,
            tf.where(counts, start, seen.start),
            tf.where(is_high, seen.high + 1, 0.0),
        )
        return tf.math.is_finite(loss) & (seen.high < PATIENCE), seen

    @property
    def verdict(self):
        """Why a run ended early, the predicate of a sentence about its training loss."""
        factor, seen = float(self.factor), Seen(*map(float, self.seen))
        if seen.high < PATIENCE:
            return "stopped being finite"
        return (
            f"was above {factor * seen.start:.3g}, {factor:g} times that of the first steps, for "
            f"the {PATIENCE}th step in a row"
        )


def steps_while_sound(count, one_step, *carried, watch=None):
    """Runs `one_step(i, *carried) → (loss, *carried)` `count` times, or until a run is given up.

    Args:
        watch: The `LossWatch` that judges the losses; `None` when they have been judged before.

    Returns:
        `(steps, sound, *carried)`.
    """

    def body(i, _, seen, *carried):
        loss, *carried = one_step(i, *carried)
        sound, seen = watch.judge(loss, seen) if watch else (tf.constant(True), seen)
        return i + 1, sound, seen, *carried

    steps, sound, seen, *carried = tf.while_loop(
        lambda i, sound, *_: (i < count) & sound,
        body,
        [tf.constant(0, "int64"), tf.constant(True), watch.read() if watch else (), *carried],
        parallel_iterations=1,
    )
    if watch:
        watch.write(seen)
    return steps, sound, *carried


def _variable(value):
    return tf.Variable(value, trainable=False, dtype="float64")
