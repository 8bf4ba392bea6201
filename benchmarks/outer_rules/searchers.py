"""The interface of searchers: they propose trainings, see the measurements, and give an answer.

Searchers that learn schedules and searchers that tune three numbers differ in their proposals; the
cost of proposals is counted in the same way.
"""

import abc
from typing import NamedTuple

import numpy as np

from benchmarks.outer_rules.inner_loop import HYPERGRADIENTS_COST, Measured


class Proposal(NamedTuple):
    """A training to run.

    Args:
        schedule: Float32 `[horizon, numbers]`; the horizon may be shorter than the task's.
        with_hypergradients: Whether the pass computes them, at four times the cost.
        values: What the searcher remembers of it. Defaults to `None`.
    """

    schedule: np.ndarray
    with_hypergradients: bool
    values: object = None

    def cost(self, horizon):
        """In plain trainings of the task's horizon."""
        factor = HYPERGRADIENTS_COST if self.with_hypergradients else 1.0
        return factor * len(self.schedule) / horizon


class Observation(NamedTuple):
    """A proposal and what it measured."""

    proposal: Proposal
    measured: Measured


class Searcher(abc.ABC):
    """A search in progress.

    Args:
        optimizer: The inner optimizer's name, `"sgd"` or `"adamw"`.
        horizon: Inner steps of a whole training.
        seed: The seed of its own randomness.

    Attributes:
        waited: The longest training of every round, all together, in plain trainings; `None` where
            trainings are made one after another.
    """

    waited = None

    def __init__(self, optimizer, horizon, seed):
        self.optimizer, self.horizon, self.seed = optimizer, horizon, seed

    @abc.abstractmethod
    def propose(self, observations):
        """The next `Proposal`, or `None` when the search ends.

        Args:
            observations: All so far, a list of `Observation` that has grown by the last proposal.
        """

    @abc.abstractmethod
    def answer(self, observations):
        """The schedule it would train with now, `[horizon, numbers]`; `None` before there is one.

        Called after `propose` has seen the same observations.
        """


def best_of(observations):
    """The schedule whose plain training had the lowest validation loss, or `None`."""
    sound = [each for each in observations if not each.measured.broke_down]
    if not sound:
        return None
    return min(sound, key=lambda each: each.measured.loss).proposal.schedule


def decay(numbers, horizon, shape):
    """A schedule whose learning rate decays from a peak to zero; its other numbers stay.

    Args:
        numbers: The peak and the other numbers, in the optimizer's order.
        horizon: Inner steps.
        shape: `"cosine"` or `"linear"`.
    """
    middles = (np.arange(horizon) + 0.5) / horizon
    course = (1 + np.cos(np.pi * middles)) / 2 if shape == "cosine" else 1 - middles
    schedule = np.tile(np.asarray(numbers, "float32"), (horizon, 1))
    schedule[:, 0] *= course
    return schedule


def between_knots(parts, horizon):
    """A schedule on lines between knots, one array of values for every number."""
    times = np.arange(horizon) / horizon
    columns = [np.interp(times, np.linspace(0, 1, len(part)), part) for part in parts]
    return np.stack(columns, axis=1).astype("float32")
