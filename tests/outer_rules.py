"""What the tests of outer update rules share."""

import numpy as np

from keras_fds.outer import Measurement, Ranges


def linear_ranges(minimum, maximum):
    minimum, maximum = np.atleast_1d(minimum), np.atleast_1d(maximum)
    linear, groups = np.full(len(minimum), True), np.arange(len(minimum))
    return Ranges(minimum.astype(float), maximum.astype(float), linear, groups)


ANYWHERE = linear_ranges(-np.inf, np.inf)
POSITIVE = linear_ranges(0.0, np.inf)


def measurement(hypergradients, loss=1.0, lengths=1, horizon=10, error=0.0):
    hypergradients = np.array(hypergradients, "float64")
    return Measurement(hypergradients, loss, np.full(len(hypergradients), lengths), horizon, error)


def run(rule, values, step_sizes, measured, losses=None, ranges=ANYWHERE):
    """The states before and after every update."""
    states = [rule.initial_state(np.array(values), np.array(step_sizes))]
    for i, hypergradients in enumerate(measured):
        loss = 1.0 if losses is None else losses[i]
        states.append(rule.update(states[-1], measurement(hypergradients, loss), ranges))
    return states
