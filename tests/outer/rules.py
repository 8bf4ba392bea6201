"""What the tests of outer update rules share."""

import numpy as np

from keras_fds.outer import Measurement, Ranges


def linear_ranges(minimum, maximum, smoothing_window=None):
    """Of one hyperparameter a bucket, or of one with all buckets if it has a window."""
    minimum, maximum = np.atleast_1d(minimum), np.atleast_1d(maximum)
    number, linear = len(minimum), np.full(len(minimum), True)
    groups = np.arange(number) if smoothing_window is None else np.zeros(number)
    smoothing_windows = np.full(number, max(1.0, (smoothing_window or 0) * number))
    return Ranges(minimum.astype(float), maximum.astype(float), linear, groups, smoothing_windows)


ANYWHERE = linear_ranges(-np.inf, np.inf)
POSITIVE = linear_ranges(0.0, np.inf)


def measurement(hypergradients, loss=1.0, lengths=1, horizon=10, error=0.0):
    """Of hypergradients that are means over buckets of some length; not finite, of a break-down."""
    hypergradients = np.array(hypergradients, "float64")
    if not np.isfinite(loss):
        return Measurement.of_break_down(len(hypergradients), horizon)
    return Measurement(lengths * hypergradients, loss, horizon, error)


def run(rule, values, step_sizes, measured, losses=None, ranges=ANYWHERE):
    """The states before and after every update."""
    states = [rule.initial_state(np.array(values), np.array(step_sizes))]
    for i, hypergradients in enumerate(measured):
        loss = 1.0 if losses is None else losses[i]
        states.append(rule.update(states[-1], measurement(hypergradients, loss), ranges))
    return states
