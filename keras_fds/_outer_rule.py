"""What an outer update rule is: a measurement and a state in, a new state out.

A rule sees all buckets of all hyperparameters as one vector and keeps its state in a
dictionary of float64 arrays, so that whoever owns the state can save it.
"""

from typing import NamedTuple

import numpy as np


class Measurement(NamedTuple):
    """What an outer step measured at the present values.

    Args:
        hypergradients: By coordinates, means over the steps of each bucket, float64
            `[total_buckets]`.
        loss: Validation loss; not finite when the inner loop broke down.
        lengths: Inner steps in each bucket, `[total_buckets]`.
        horizon: Inner steps in all.
        loss_error: Standard error of the validation loss, `0.0` where it is not known.

    Example:

    >>> Measurement(np.array([-0.2, 0.1]), loss=0.5, lengths=np.array([50, 50]), horizon=100)
    """

    hypergradients: np.ndarray
    loss: float
    lengths: np.ndarray
    horizon: int
    loss_error: float = 0.0


class Ranges(NamedTuple):
    """Where coordinates may lie, arrays of `[total_buckets]`.

    Args:
        minimum, maximum: The ends, float64, which may be infinite.
        linear: Whether a coordinate is the value itself, bool.
        groups: The number of the hyperparameter that the bucket belongs to.
        breadths: Buckets in the part of the horizon over which the slopes of this hyperparameter
            are put together, float64 of at least 1.

    Example:

    >>> Ranges(np.zeros(2), np.full(2, np.inf), np.full(2, True), np.zeros(2), np.ones(2))
    """

    minimum: np.ndarray
    maximum: np.ndarray
    linear: np.ndarray
    groups: np.ndarray
    breadths: np.ndarray


class Rule:
    """What the rules share."""

    # The search has converged when every step is below this fraction of its value and room.
    converged_fraction = 0.05

    def converged(self, state, ranges):
        """Whether every step size is below 5% of its value, and of what is left to its maximum.

        A value that its last sign holds at an end of its range counts as settled.
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
    if not (isinstance(value, (int, float)) and 0 < value < 1):
        raise ValueError(f"`{name}` must lie in (0, 1). Received: {name}={value!r}")
    return value


def number(name, value, least):
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and least <= value < np.inf):
        raise ValueError(
            f"`{name}` must be a number of at least {least:g}. Received: {name}={value!r}"
        )
    return value
