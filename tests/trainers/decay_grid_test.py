"""The grid proposes every point once, as a decay; what it is given must fit what is learned."""

import numpy as np
import pytest

import keras_fds
from keras_fds.hyperparameters import Buckets
from keras_fds.outer import Observation, Problem
from trainers.decay_grid import DecayGrid


def problem(budget=4.0, interpolation="constant"):
    rate = keras_fds.Hyperparameter("learning_rate", 4, interpolation=interpolation)
    buckets = Buckets([rate, keras_fds.Hyperparameter("momentum", 2)])
    return Problem(buckets, buckets.initial_coordinates(), horizon=100, budget=budget)


def run(grid, problem):
    proposals, observations = [], []
    while (found := grid.propose(observations, problem)) is not None:
        proposals.append(found)
        observations.append(Observation(found.coordinates, found.horizon, loss=1.0))
    return proposals


def test_every_point_is_a_plain_training_over_the_whole_horizon():
    proposals = run(DecayGrid(learning_rate=(0.1, 0.4), momentum=(0.0, 0.9)), problem())
    assert [each.horizon for each in proposals] == [100] * 4
    assert not any(each.with_hypergradients for each in proposals)
    found = np.array([each.coordinates[[0, -1]] for each in proposals])
    peak = (1 + np.cos(np.pi / 8)) / 2
    expected = [[0.1 * peak, 0.0], [0.1 * peak, 0.9], [0.4 * peak, 0.0], [0.4 * peak, 0.9]]
    np.testing.assert_allclose(found, expected)


def test_workers_get_the_next_points():
    grid = DecayGrid(learning_rate=(0.1, 0.4), momentum=(0.0, 0.9))
    proposals = run(grid, problem())
    observations = [Observation(each.coordinates, each.horizon, 1.0) for each in proposals]
    for done in range(5):
        found = grid.propose_several(observations[:done], problem(), 3)
        expected = proposals[done : done + 3]
        np.testing.assert_equal([vars(each) for each in found], [vars(each) for each in expected])


@pytest.mark.parametrize(
    "shape, interpolation, expected",
    [
        ("cosine", "linear", [1.0, 0.75, 0.25, 0.0]),
        ("linear", "linear", [1.0, 2 / 3, 1 / 3, 0.0]),
        ("linear", "constant", [0.875, 0.625, 0.375, 0.125]),
        ("constant", "linear", [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_the_learning_rate_decays_to_zero(shape, interpolation, expected):
    grid = DecayGrid(shape, learning_rate=(1.0,), momentum=(0.5,))
    (proposal,) = run(grid, problem(interpolation=interpolation))
    np.testing.assert_allclose(proposal.coordinates, [*expected, 0.5, 0.5], atol=1e-12)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="'cosine', 'linear' or 'constant'"):
        DecayGrid("step")
    with pytest.raises(ValueError, match="values for what is learned"):
        DecayGrid(learning_rate=(0.1,)).propose([], problem())
    with pytest.raises(ValueError, match="budget of 5"):
        DecayGrid(learning_rate=(1, 2, 3, 4, 5), momentum=(0.9,)).propose([], problem())


def test_its_config_makes_it_again():
    grid = DecayGrid("linear", learning_rate=(0.1, 0.4), momentum=(0.0,))
    assert DecayGrid.from_config(grid.get_config()).get_config() == grid.get_config()
