"""A grid of decaying learning rates, as an outer rule: the baseline of every comparison."""

import itertools

import keras
import numpy as np

from keras_fds.outer import Proposal, Rule

_SHAPES = {
    "cosine": lambda time: (1 + np.cos(np.pi * time)) / 2,
    "linear": lambda time: 1 - time,
    "constant": np.ones_like,
}


@keras.saving.register_keras_serializable("trainers")
class DecayGrid(Rule):
    """Trains over the whole horizon with every point of a grid, and keeps the best.

    The learning rate decays from a peak to zero, or not at all; every other hyperparameter is
    constant. The best point has the lowest validation loss. As a rule, the grid runs in the same
    compiled loop as searches, and is resumed, recorded and drawn as they are. Its budget is the
    number of points.

    Args:
        shape: `"cosine"`, `"linear"` or `"constant"`. Defaults to `"cosine"`.
        **values: For every learned hyperparameter the values to try; of the learning rate, peaks.

    Raises:
        ValueError: The shape is unknown, a hyperparameter has no values, or `values` names others.

    Example:

    >>> DecayGrid(learning_rate=(0.03, 0.1), momentum=(0.9,)).points(["learning_rate", "momentum"])
    [{'learning_rate': 0.03, 'momentum': 0.9}, {'learning_rate': 0.1, 'momentum': 0.9}]
    """

    chooses_horizons = True

    def __init__(self, shape="cosine", **values):
        if shape not in _SHAPES:
            raise ValueError(
                f"`shape` must be 'cosine', 'linear' or 'constant'. Received: shape={shape!r}"
            )
        self.shape = shape
        self.values = {name: [float(each) for each in of_one] for name, of_one in values.items()}

    def points(self, names):
        """All points of the grid, `[{name: number}, …]`."""
        if set(names) != set(self.values) or not all(self.values.values()):
            raise ValueError(
                "DecayGrid needs values for what is learned, and for nothing else: "
                f"{', '.join(names)}. Received: {self.values}"
            )
        return [dict(zip(names, p)) for p in itertools.product(*map(self.values.get, names))]

    def propose(self, observations, problem):
        proposals = self.propose_several(observations, problem, 1)
        return proposals[0] if proposals else None

    def propose_several(self, observations, problem, number):
        points = self.points(problem.buckets.names)
        if problem.budget is None or problem.budget < len(points):
            raise ValueError(
                f"DecayGrid needs a budget of {len(points)}, a training for every point. "
                f"Received: budget={problem.budget}"
            )
        done = len(observations)
        values = [self.schedules(p, problem.buckets) for p in points[done : done + number]]
        return [Proposal(problem.buckets.coordinates(v), problem.horizon, False) for v in values]

    def schedules(self, point, buckets):
        """`{name: bucket values}` of a point."""
        found = {}
        for each in buckets.hyperparameters:
            times = (np.arange(each.num_buckets) + 0.5) / each.num_buckets
            if each.interpolation == "linear":
                times = np.linspace(0, 1, each.num_buckets)
            decay = _SHAPES[self.shape](times) if each.name == "learning_rate" else 1.0
            found[each.name] = point[each.name] * np.broadcast_to(decay, [each.num_buckets])
        return found

    def get_config(self):
        return {"shape": self.shape, **self.values}
