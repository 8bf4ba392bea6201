"""The interface of outer update rules: a measurement and a state in, a new state out.

A rule sees all buckets of all hyperparameters as one vector. It keeps its state in a dictionary of
float64 arrays, so the state can be saved.
"""

from typing import NamedTuple

import numpy as np

from keras_fds.numbers import number


class Measurement(NamedTuple):
    """What an outer step measured at the present values.

    Args:
        hypergradients: The derivatives of the validation loss by the coordinates, float64
            `[total_buckets]`. (Reports divide them by the length of a bucket.)
        loss: Validation loss.
        horizon: Number of inner steps.
        loss_error: Standard error of the validation loss; `0.0` if it is not known.
        broke_down: Whether training was given up, so loss and hypergradients are not known.

    Example:

    >>> Measurement(np.array([-20.0, 10.0]), loss=0.5, horizon=100)
    """

    hypergradients: np.ndarray
    loss: float
    horizon: int
    loss_error: float = 0.0
    broke_down: bool = False

    @classmethod
    def of_break_down(cls, size, horizon):
        """The measurement of a run that was given up.

        Args:
            size: Total number of buckets.
            horizon: Number of inner steps.
        """
        return cls(np.zeros(size), 0.0, horizon, broke_down=True)


class Ranges(NamedTuple):
    """The ranges of the coordinates, arrays `[total_buckets]`.

    Args:
        minimum, maximum: The ends of the ranges, float64; they may be infinite.
        linear: Whether a coordinate is the value itself, bool.
        groups: The number of the hyperparameter that the bucket belongs to.
        smoothing_windows: Number of buckets over which the slopes of this hyperparameter are
            averaged, float64 of at least 1.

    Example:

    >>> Ranges(np.zeros(2), np.full(2, np.inf), np.full(2, True), np.zeros(2), np.ones(2))
    """

    minimum: np.ndarray
    maximum: np.ndarray
    linear: np.ndarray
    groups: np.ndarray
    smoothing_windows: np.ndarray


class Rule:
    """What all rules share."""

    # The search has converged when every step is below this fraction of its value and room.
    converged_fraction = 0.05

    def converged(self, state, ranges):
        """Whether every step size is below 5% of its value and of the distance to its maximum.

        A value that its last sign holds at an end of its range counts as converged.
        """
        values, signs = state["values"], state["signs"]
        room = np.minimum(np.abs(values), ranges.maximum - values)
        small = state["step_sizes"] < self.converged_fraction * room
        held = (values <= ranges.minimum) & (signs > 0)
        held |= (values >= ranges.maximum) & (signs < 0)
        return bool(np.all(small | held))

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def fraction(name, value):
    return number(name, value, above=0, below=1)
