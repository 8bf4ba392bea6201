"""The made-up loss of `benchmarks.cliffs` has the cliff that it says."""

import numpy as np

from benchmarks import cliffs


def test_trainings_die_above_a_rate_that_chance_moves():
    problem = cliffs.make_problem(seed=0, budget=2.0)
    values = problem.buckets.values(problem.start)

    def log_loss(rate, chance=0.0):
        ones = {name: [1.0] for name in values if name.startswith("layer")}
        chosen = {**values, **ones, "learning_rate": np.full(5, rate)}
        coordinates = problem.buckets.coordinates(chosen)
        return cliffs.log_loss(problem, coordinates, cliffs.HORIZON, 0.006, (chance, 0.0))

    low, middle, high = (log_loss(rate) for rate in (1e-6, 5e-3, 7e-3))
    assert [died for _, died in (low, middle, high)] == [False, False, True]
    assert middle[0] < low[0] < cliffs.UNTRAINED == high[0]
    assert log_loss(5e-3, chance=-1.0)[1] and not log_loss(7e-3, chance=1.0)[1]


def test_a_search_ends_with_an_answer():
    loss, died = cliffs.search(cliff=1.0, seed=0, budget=3.0)
    assert loss < cliffs.UNTRAINED - 0.1 and died == 0.0
