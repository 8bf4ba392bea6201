"""Grids of cosine and linear decay, run in a random order for each seed."""

import itertools

import numpy as np

from benchmarks.outer_rules.searchers import Proposal, Searcher, best_of, decay

# Peaks, averages (momentum or beta_1) and weight decays: forty trainings.
GRIDS = {
    "sgd": ((0.01, 0.03, 0.1, 0.3, 1.0), (0.8, 0.95), (0.0, 3e-4, 1e-3, 3e-3)),
    "adamw": ((1e-3, 3e-3, 1e-2, 3e-2, 0.1), (0.8, 0.95), (0.0, 0.03, 0.1, 0.3)),
}


class Grid(Searcher):
    """A grid in random order, so every part of it is a fair sample.

    Args:
        optimizer, horizon, seed: See `Searcher`.
        shape: `"cosine"` or `"linear"`.
    """

    def __init__(self, optimizer, horizon, seed, shape):
        super().__init__(optimizer, horizon, seed)
        points = list(itertools.product(*GRIDS[optimizer]))
        order = np.random.default_rng([seed, 4]).permutation(len(points))
        self.points, self.shape = [points[i] for i in order], shape

    def propose(self, observations):
        if len(observations) == len(self.points):
            return None
        numbers = self.points[len(observations)]
        schedule = decay(numbers, self.horizon, self.shape)
        return Proposal(schedule, with_hypergradients=False, values=numbers)

    def answer(self, observations):
        return best_of(observations)
